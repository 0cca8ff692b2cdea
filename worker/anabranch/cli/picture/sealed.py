"""What a run has answered, for the commands that show it: opened where the keys are, fetched where the store is.

Must never: fail because it cannot be had, or keep who looks at the run waiting for it: then it says why. Called by:
`run`, `runs show` and `runs watch`.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from anabranch.agent.answer import response
from anabranch.agent.state import Run
from anabranch.cli.frame import Frame
from anabranch.client_seals import ClientSeals, fetched, is_sealed
from anabranch.errors import ConfigError, Forgotten, StoreError
from anabranch.messages import RunResponse

SOON_S: Final = 5.0
"""How long keys and store are tried each; all the rest of a run is at hand."""


class Told(NamedTuple):
    """An answer, and why what of it is sealed or in the store stays there, if that was tried."""

    response: RunResponse
    hidden: str | None = None


def seals(common: Frame) -> ClientSeals:
    """What opens what is shown of a run: a piece that cannot be opened soon is left out."""
    return ClientSeals(common.sealing(), SOON_S)


async def told(common: Frame, run: Run) -> Told | None:
    """The answer of a run that has ended."""
    if run.ending is None:
        return None
    found = response(run)
    tenant, where = run.opening.request.tenant, "sealed" if is_sealed(found) else "in the store"
    try:
        async with asyncio.timeout(2 * SOON_S):
            if is_sealed(found):
                found = await seals(common).response(found, tenant)
            if found.content_ref is not None:
                found = await fetched(found, common.store(), tenant, SOON_S)
    except Forgotten as error:
        return Told(found, f"sealed, and forgotten: {error}")
    except (StoreError, ConfigError) as error:
        return Told(found, f"{where}: {error}")
    except TimeoutError:
        return Told(found, f"{where}: keys and store did not answer within {2 * SOON_S:g} s")
    return Told(found)
