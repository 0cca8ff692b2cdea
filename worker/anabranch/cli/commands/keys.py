"""`anabranch keys list|make|forget`: the tenants' keys that ANABRANCH_KEYS names.

Responsible for the command lines; the keys are `keys.py`'s. Must never: print a key. Keys that an App has from
elsewhere (a KMS, say) are looked after there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from anabranch.cli import frame, output
from anabranch.errors import AnabranchError, ConfigError

if TYPE_CHECKING:
    from anabranch.keys import StoredKeys


@click.group(cls=frame.Commands)
def keys() -> None:
    """List the tenants' keys, make one, or delete one: which forgets the tenant."""


@keys.command("list")
@frame.options(app=True, listing=True)
def list_keys(common: frame.Frame) -> None:
    """List the tenants that have a key, and those that are forgotten."""
    found = frame.run_async(_keys(common).tenants())
    if common.as_json:
        output.print_json([{"tenant": each.tenant, "forgotten": each.forgotten} for each in found])
        return
    rows = [(each.tenant or "(without a tenant)", "forgotten" if each.forgotten else "has a key") for each in found]
    output.print_table(("tenant", "state"), rows, empty=f"no tenant of {common.namespace().name} has a key")


@keys.command()
@click.argument("tenant", metavar="TENANT", type=frame.Name())
@frame.options(app=True)
def make(common: frame.Frame, tenant: str) -> None:
    """Make a key for TENANT, where those who need it cannot make one themselves."""
    made = frame.run_async(_keys(common).make(tenant))
    output.say(f"tenant {tenant} has a key" if made else f"tenant {tenant} has a key already, or is forgotten")


@keys.command()
@click.argument("tenant", metavar="TENANT", type=frame.Name())
@click.option("--yes", is_flag=True, help="Do not ask.")
@frame.options(app=True)
def forget(common: frame.Frame, tenant: str, yes: bool) -> None:
    """Delete TENANT's key for ever. What was sealed with it can never be read again, wherever it lies.

    Within a minute no worker and no client has it any more: its runs end as `forgotten`, and new ones are refused.
    """
    found = _keys(common)
    tenants = {each.tenant: each.forgotten for each in frame.run_async(found.tenants())}
    if tenants.get(tenant):
        output.say(f"tenant {tenant} is forgotten already")
        return
    if tenant not in tenants:
        raise AnabranchError(f"tenant {tenant!r} has no key in namespace {common.namespace().name}")
    if not yes and not click.confirm(f"Delete the key of tenant {tenant} for ever?", err=True):
        raise AnabranchError(f"the key of tenant {tenant} is not deleted")
    frame.run_async(found.forget(tenant))
    output.say(f"tenant {tenant} is forgotten")


def _keys(common: frame.Frame) -> StoredKeys:
    from anabranch.security.sealing import stored

    found = stored(common.settings.sealing, common.namespace().name)
    if found is None:
        raise ConfigError("no keys are set: ANABRANCH_KEYS names where they are (docs/security.md)")
    return found
