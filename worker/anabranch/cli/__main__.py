"""`python -m anabranch.cli` is the same as the script `anabranch`."""

from __future__ import annotations

from anabranch.cli import main

main()
