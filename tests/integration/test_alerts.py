"""The alerts, judged by promtool, and the runbook that goes with them.

Responsible for: that each alert fires when it should and not otherwise, and has an entry in the runbook that says how
to see it, what it means and what to do.
Must never: check metric names; `test_queries.py` does.
Called by: pytest.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.chart import CHART, ROOT, render, value_sets
from tests.support.instruments import promtool, run

pytestmark = pytest.mark.timeout(300)  # promtool may have to be fetched first

ALERTS = CHART / "files" / "alerts.yaml"
RULE_TESTS = ROOT / "tests" / "rules"
RUNBOOK = ROOT / "docs" / "runbook.md"


def rules() -> dict[str, Any]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def entries() -> dict[str, str]:
    """The runbook's entries: heading and text."""
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (re.split(r"^# ", text, flags=re.MULTILINE)[0] for text in parts[1::2]), strict=True))


def slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


@pytest.fixture
def rule_tests(tmp_path: Path) -> Path:
    """The rule tests beside the rules: promtool looks for these where the tests are."""
    shutil.copy(ALERTS, tmp_path)
    for file in RULE_TESTS.glob("*.test.yaml"):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_promtool_takes_the_alerts_as_they_are() -> None:
    done = run([promtool(), "check", "rules", "--lint=all", "--lint-fatal", str(ALERTS)])

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_only_then(rule_tests: Path) -> None:
    files = sorted(str(file) for file in rule_tests.glob("*.test.yaml"))

    done = run([promtool(), "test", "rules", *files])

    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_that_never_fires_is_noticed(rule_tests: Path) -> None:
    """The rule tests can fail: with thresholds that nothing reaches, those of every alert do."""
    document = yaml.safe_load(ALERTS.read_text())
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        rule["expr"] = f"({rule['expr']}) > 1e12"
    (rule_tests / "alerts.yaml").write_text(yaml.safe_dump(document))

    done = run([promtool(), "test", "rules", *sorted(str(file) for file in rule_tests.glob("*.test.yaml"))])

    assert done.returncode == 1
    missed = re.findall(r'alertname=\\"(\w+)\\"', done.stderr + done.stdout)
    assert set(missed) == rules().keys()


def test_the_words_of_each_alert_can_be_put_together(rule_tests: Path) -> None:
    """Prometheus puts an error into the text where it cannot; promtool shows what it got where nothing was expected."""
    for file in rule_tests.glob("*.test.yaml"):
        document = yaml.safe_load(file.read_text())
        for test in document["tests"]:
            name = test["name"]
            at = test.pop("promql_expr_test", [{"eval_time": "0m"}])[-1]["eval_time"]
            test["alert_rule_test"] = [{"alertname": name, "eval_time": at, "exp_alerts": []}]
        file.write_text(yaml.safe_dump(document))

    done = run([promtool(), "test", "rules", *sorted(str(file) for file in rule_tests.glob("*.test.yaml"))])

    told = done.stdout + done.stderr
    assert set(re.findall(r"alertname: (\w+), time", told)) == rules().keys()
    assert "error expanding" not in told
    assert "%!" not in told


def test_each_alert_has_a_rule_test_with_series_that_it_lets_be() -> None:
    tests = [test for file in RULE_TESTS.glob("*.test.yaml") for test in yaml.safe_load(file.read_text())["tests"]]
    named = {test["name"]: test for test in tests}

    assert named.keys() - rules().keys() == {"the words of an alert"}
    assert rules().keys() <= named.keys()
    for name in rules():
        assert any('"calm"' in series["series"] for series in named[name]["input_series"]), name


def test_each_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    for name, rule in rules().items():
        assert rule["labels"]["severity"] in {"warning", "critical"}, name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert name.startswith("Anabranch"), name


def test_each_alert_has_an_entry_in_the_runbook_and_each_entry_an_alert() -> None:
    pages = [f"docs/runbook.md#{slug(heading)}" for heading in entries()]

    assert sorted(rule["annotations"]["runbook_url"] for rule in rules().values()) == sorted(pages)


@pytest.mark.parametrize("name", rules())
def test_an_entry_says_how_to_see_it_what_it_means_and_what_to_do(name: str) -> None:
    anchor = rules()[name]["annotations"]["runbook_url"].partition("#")[2]
    [text] = [text for heading, text in entries().items() if slug(heading) == anchor]

    assert text.strip().startswith(f"`{name}` · ")
    for part in ("**See**", "**It means**", "**Do**"):
        assert part in text, f"{name} lacks {part}"


def test_the_chart_ships_the_alerts_as_they_are_but_for_what_its_values_say() -> None:
    rule = render(value_sets()["everything"]).one("PrometheusRule")
    shipped = {item["alert"]: item for group in rule["spec"]["groups"] for item in group["rules"]}

    assert rules().keys() - shipped.keys() == {"AnabranchCostRises"}
    waits = shipped["AnabranchToolCallsWait"]
    assert (waits["for"], waits["labels"]) == ("15m", {"severity": "critical", "team": "shop"})
    for name, item in shipped.items():
        assert item["expr"] == rules()[name]["expr"]
        page = rules()[name]["annotations"]["runbook_url"].removeprefix("docs/runbook.md")
        assert item["annotations"]["runbook_url"] == f"https://wiki.example.com/anabranch/runbook{page}"
