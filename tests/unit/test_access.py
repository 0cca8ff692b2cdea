"""The grants as they are written down and printed.

Responsible for: docs/security.md says what `anabranch.security.access` says, and the command prints it. Whether it is
right is tried in tests/integration/test_access*.py. Called by: pytest.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from anabranch.cli import anabranch, frame
from anabranch.security.access import ROLES, Grant, command, grants
from anabranch.topics import Namespace

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
APP = """
from anabranch import App

app = App("shop")


@app.tool(queue="io")
async def near() -> str:
    \"\"\"Answers.\"\"\"
    return ""


@app.tool(queue="cpu")
def far() -> str:
    \"\"\"Answers.\"\"\"
    return ""
"""


def lines_of_the_table() -> list[str]:
    shop = Namespace("shop")
    return [
        f"| {role} | {grant.operation} | {grant.kind} `{grant.name}{'*' if grant.prefixed else ''}` | {grant.why} |"
        for role in ROLES
        for grant in grants(role, shop, ["io"])
        if role != "operator" or grant not in grants("reader", shop, [])
    ]


def test_the_documentation_lists_exactly_the_grants() -> None:
    written = [line for line in SECURITY.read_text().splitlines() if line.split(" | ")[0].removeprefix("| ") in ROLES]
    assert written == lines_of_the_table()


def test_the_documentation_says_what_each_role_is() -> None:
    text = SECURITY.read_text()
    assert all(f"- **{role}**: {what}" in text for role, what in ROLES.items())


def test_no_role_is_granted_a_thing_twice() -> None:
    for role in ROLES:
        granted = [(grant.operation, grant.kind, grant.name) for grant in grants(role, Namespace("shop"), ["io"])]
        assert len(granted) == len(set(granted))


def test_a_grant_is_a_command_that_a_shell_takes_as_it_is() -> None:
    grant = Grant("Write", "topic", "shop.tool.calls.", "sends calls", prefixed=True)
    assert command(grant, "User:CN=a b,O=c", "kafka:9093") == (
        "kafka-acls --bootstrap-server kafka:9093 --add --allow-principal 'User:CN=a b,O=c' "
        "--operation Write --topic shop.tool.calls. --resource-pattern-type prefixed"
    )


@pytest.fixture
def app_file(tmp_path: Path) -> str:
    file = tmp_path / f"app_{secrets.token_hex(4)}.py"
    file.write_text(APP)
    return str(file)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert frame.invoke(anabranch, ["topics", "acls", *arguments]) == status
    return capsys.readouterr().out


def test_the_command_prints_the_roles_that_are_asked_for(app_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, app_file, "--tool", "User:t", "--queue", "cpu", "--bootstrap", "kafka:1")
    said = [line for line in out.splitlines() if not line.startswith("#")]
    assert said == [command(grant, "User:t", "kafka:1") for grant in grants("tool", Namespace("shop"), ["cpu"])]
    everybody = printed(capsys, app_file, "--namespace", "other")
    assert all(f"User:{role}" in everybody for role in ROLES)
    assert "other.tools.io" in everybody


def test_the_command_prints_json_and_refuses_a_queue_that_is_not_there(
    app_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(printed(capsys, app_file, "--client", "User:c", "--json"))
    assert rows[0] == {
        "role": "client", "principal": "User:c", "operation": "Write", "kind": "topic", "name": "shop.agent.requests",
        "why": "submits runs", "prefixed": False,
    }  # fmt: skip
    printed(capsys, app_file, "--queue", "oi", status=2)
