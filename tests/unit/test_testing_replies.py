"""What scripts say, what they can ask of a request, and how a script is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anabranch.errors import ConfigError, DefinitionError
from anabranch.testing import (
    Reply,
    ScriptedModel,
    last_results,
    prompt_of,
    result_text,
    text,
    thinking,
    tool_use,
    turn_of,
)
from anabranch.testing.load import load_script
from anabranch.testing.replies import as_reply

REQUEST: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": [text("find "), {"type": "image", "source": {}}, text("Ada")]},
        {"role": "assistant", "content": [tool_use("find", {}, "a"), tool_use("find", {}, "b")]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "b", "content": [text("two")]},
                {"type": "tool_result", "tool_use_id": "a", "content": "one"},
                text("go on"),
            ],
        },
    ]
}


def test_a_script_asks_for_turn_prompt_and_results() -> None:
    assert turn_of(REQUEST) == 2
    assert prompt_of(REQUEST) == "find Ada"
    results = last_results(REQUEST)
    assert {id_: result_text(block) for id_, block in results.items()} == {"a": "one", "b": "two"}
    assert result_text({"type": "tool_result", "tool_use_id": "a"}) == ""


def test_a_first_request_has_no_results() -> None:
    assert last_results({"messages": [{"role": "user", "content": "hello"}]}) == {}


@pytest.mark.parametrize("answer", ["hi", text("hi"), [text("hi")], ("hi",), Reply(content=["hi"])])
def test_a_script_may_say_it_shortly(answer: Any) -> None:
    content = [text(block) if isinstance(block, str) else block for block in as_reply(answer).content]
    assert content == [text("hi")]


@pytest.mark.parametrize("answer", [None, 7, [7], b"raw"])
def test_an_answer_that_is_none_is_refused(answer: Any) -> None:
    with pytest.raises(DefinitionError, match="a script gave"):
        as_reply(answer)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"a": 1}, "{'a': 1} is no block of a reply"),
        ({"type": 1}, "is no block of a reply"),
        ({"type": "text"}, "has no 'text'"),
        ({"type": "text", "text": 5}, "has no 'text'"),
        ({"type": "tool_use", "name": "look"}, "has no 'input'"),
        ({"type": "tool_use", "input": {}}, "has no 'name'"),
        ({"type": "thinking", "thinking": "so"}, "has no 'signature'"),
    ],
)
def test_a_block_that_is_none_is_refused_where_it_is_written(block: Any, told: str) -> None:
    for script in ([block], [[text("hi"), block]]):
        with pytest.raises(DefinitionError, match=told):
            ScriptedModel(script)
    with pytest.raises(DefinitionError, match=told):
        Reply(content=[block])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"content": (text("hi") for _ in range(1))}, "put .* in a list"),
        ({"content": None}, "put None in a list"),
        ({"latency_s": "1"}, "latency_s='1' must be seconds"),
        ({"chunk_s": -1}, "chunk_s=-1 must be seconds"),
        ({"status": "200"}, "status='200' must be an HTTP status"),
        ({"status": 99}, "status=99"),
        ({"headers": {"retry-after": 1}}, "headers=.* must be a dict of texts"),
        ({"headers": [("a", "b")]}, "headers="),
        ({"usage": 5}, "usage=5 must be a dict"),
        ({"cut_after": -1}, "cut_after=-1 must be how many events"),
        ({"sse_error": "overloaded_error"}, "sse_error=.* must be an error's type and its message"),
        ({"sse_error": ("overloaded_error",)}, "sse_error="),
    ],
)
def test_a_reply_that_could_not_be_delivered_is_refused_where_it_is_written(options: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        Reply(**options)


@pytest.mark.parametrize("call", [lambda: Reply.error("529"), lambda: Reply.error(429, retry_after="soon")])  # type: ignore[arg-type]
def test_an_error_that_could_not_be_sent_is_refused(call: Any) -> None:
    with pytest.raises(DefinitionError, match=r"must be seconds|an HTTP status"):
        call()


def test_a_block_of_a_type_that_nobody_knows_is_sent() -> None:
    assert as_reply({"type": "novel", "x": 1}).content == [{"type": "novel", "x": 1}]


@pytest.mark.parametrize("script", ["hi", Reply(), text("hi"), None])
def test_a_script_that_is_none_is_refused(script: Any) -> None:
    with pytest.raises(DefinitionError, match="put one reply in a list"):
        ScriptedModel(script)


def test_a_reply_has_one_fault_at_most() -> None:
    with pytest.raises(DefinitionError, match="at most one"):
        Reply(cut_after=1, drop_after=0)


def test_the_content_of_a_reply_is_a_list() -> None:
    with pytest.raises(DefinitionError, match="in a list"):
        Reply(content="hi")


def test_an_error_takes_its_type_from_its_status() -> None:
    reply = Reply.error(529, retry_after=2.5)
    assert reply.failure is not None
    assert (reply.status, reply.failure.type) == (529, "overloaded_error")
    assert reply.headers == {"retry-after": "2.5"}
    with pytest.raises(DefinitionError, match="400 or more"):
        Reply.error(200)


def test_a_signature_follows_from_the_thought() -> None:
    assert thinking("hm") == thinking("hm")
    assert thinking("hm")["signature"] != thinking("ho")["signature"]
    assert thinking("hm", "own")["signature"] == "own"


@pytest.mark.parametrize(("suffix", "said"), [("", "default"), (":other", "other"), (":", "default")])
def test_a_script_is_found_in_a_file(tmp_path: Path, suffix: str, said: str) -> None:
    path = tmp_path / "script_in_a_file.py"
    path.write_text("model = ['default']\nother = ['other']\n")
    assert load_script(f"{path}{suffix}") == [said]


def test_a_script_is_found_in_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script_in_a_module.py").write_text("def model(request): return 'hi'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    assert callable(load_script("script_in_a_module"))
    assert callable(load_script("script_in_a_module:model"))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\n1 / 0", r"importing .*fails\.py failed: ZeroDivisionError: division by zero \(.*fails\.py:2\)"),
        ("def (", r"fails\.py is no Python: .* \(.*fails\.py:1\)"),
        ("import no_such_module_x", r"ModuleNotFoundError: .*fails\.py:1"),
        ("raise SystemExit(4)", r"SystemExit: 4 \(.*fails\.py:1\)"),
    ],
)
def test_a_script_that_cannot_be_imported_is_told_with_the_line(tmp_path: Path, code: str, told: str) -> None:
    path = tmp_path / "script_that_fails.py"
    path.write_text(code)
    with pytest.raises(ConfigError, match=told):
        load_script(str(path))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("gone.py", "there is no file 'gone.py'"),
        ("no_such_module_at_all", "there is no module"),
        ("os.path:no_such_thing", "os.path has no 'no_such_thing'"),
        ("os:name", "a script is a function"),
    ],
)
def test_a_script_that_is_not_there_is_named(target: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_script(target)
