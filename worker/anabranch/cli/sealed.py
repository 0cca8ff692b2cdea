"""What a sealed run has answered, for the commands that show it: opened where the keys are at hand.

Must never: fail because it cannot be opened; then it says why. Called by: `runs show` and `runs watch`.
"""

from __future__ import annotations

from typing import NamedTuple

from anabranch.agent.answer import response
from anabranch.agent.state import Run
from anabranch.cli.frame import Frame
from anabranch.client_seals import ClientSeals, is_sealed
from anabranch.errors import Forgotten, StoreError
from anabranch.messages import RunResponse


class Told(NamedTuple):
    """An answer, and why what of it is still sealed stays so."""

    response: RunResponse
    hidden: str = "sealed"


async def told(common: Frame, run: Run) -> Told | None:
    """The answer of a run that has ended."""
    if run.ending is None:
        return None
    found = response(run)
    if not is_sealed(found):
        return Told(found)
    try:
        return Told(await ClientSeals(common.sealing()).response(found, run.opening.request.tenant))
    except Forgotten as error:
        return Told(found, f"sealed, and forgotten: {error}")
    except StoreError as error:
        return Told(found, f"sealed: {error}")
