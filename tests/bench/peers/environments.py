"""An environment of its own for each peer, under build/peers/NAME.

Made anew when what is asked for has changed: `requirements.txt` goes into a virtual environment, `package.json` (a
server that npm has) beside it.

Responsible for: installing, once, with a bound on its time.
Must never: name a registry, or install anything into our own environment.
Called by: `__main__.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.processes import ROOT

HOME: Final = ROOT / "build" / "peers"
INSTALL_S: Final = 600.0
_STAMP: Final = ".installed"


class CannotBeHad(Exception):
    """A peer cannot be installed or run here; the message is the word that its row gets."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a peer's programs are."""

    home: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.home / "venv" / "bin" / "python"


def environment(folder: Path) -> Environment:
    """What the files in a peer's `folder` ask for, installed. Raises CannotBeHad."""
    made = Environment(HOME / folder.name)
    wanted = "".join(file.read_text() for name in _INSTALLERS if (file := folder / name).exists())
    stamp = made.home / _STAMP
    if not (stamp.exists() and stamp.read_text() == wanted):
        shutil.rmtree(made.home, ignore_errors=True)
        made.home.mkdir(parents=True)
        for name, install in _INSTALLERS.items():
            if (folder / name).exists():
                install(folder / name, made)
        stamp.write_text(wanted)
    return made


def _python(requirements: Path, made: Environment) -> None:
    _run([sys.executable, "-m", "venv", str(made.home / "venv")], "make a virtual environment")
    pip = [str(made.python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run([*pip, "--requirement", str(requirements)], "install its requirements")


def _node(package: Path, made: Environment) -> None:
    shutil.copy(package, made.home)
    npm = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--no-package-lock", "--prefix", str(made.home)]
    _run(npm, "install its server with npm")


_INSTALLERS: Final = {"requirements.txt": _python, "package.json": _node}


def _run(command: Sequence[str], what: str) -> None:
    sys.stderr.write(f"  {' '.join(command[:4])} ...\n")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except FileNotFoundError as error:
        raise CannotBeHad(f"could not {what}: there is no `{error.filename}` here") from error
    except subprocess.TimeoutExpired as error:
        raise CannotBeHad(f"could not {what} within {INSTALL_S:g} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise CannotBeHad(f"could not {what}: {said[-1][:200]}")
