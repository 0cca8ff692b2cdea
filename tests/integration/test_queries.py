"""Every query that is shipped: of the alerts, the dashboard, the autoscalers and the adapter's rules.

Responsible for: that each asks for metrics and labels that the workers expose, and is PromQL.
Must never: judge thresholds; `test_alerts.py` does.
Called by: pytest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.chart import CHART, render, value_sets
from tests.support.instruments import promtool, run
from tests.support.metric_names import METRICS, TARGET_LABELS, series
from tests.support.promql import grouped_by, series_in, windowed, without_variables

pytestmark = pytest.mark.timeout(300)  # promtool may have to be fetched first

FILES = CHART / "files"


def alerts() -> dict[str, str]:
    groups = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    return {f"alert {rule['alert']}": rule["expr"] for group in groups for rule in group["rules"]}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())
    return found


def panels() -> dict[str, str]:
    return {
        f"panel {panel['title']} {target['refId']}": without_variables(target["expr"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    }


def triggers() -> dict[str, str]:
    found = {}
    for name in ("keda", "everything"):
        for scaled in render(value_sets()[name]).all("ScaledObject"):
            for trigger in scaled["spec"]["triggers"]:
                found[f"{name} {scaled['metadata']['name']} {trigger['name']}"] = trigger["metadata"]["query"]
    return found


def adapter_rules() -> list[Any]:
    found: list[Any] = yaml.safe_load((FILES / "prometheus-adapter.yaml").read_text())
    return found


def adapter() -> dict[str, str]:
    found = {}
    for rule in adapter_rules():
        found[f"adapter {rule['name']['as']} series"] = rule["seriesQuery"]
        query = (
            rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="prod"').replace("<<.GroupBy>>", "namespace")
        )
        found[f"adapter {rule['name']['as']}"] = query
    return found


QUERIES = alerts() | panels() | adapter()
"""Those that lie in files; `triggers` come out of Helm."""


@pytest.mark.parametrize("where", QUERIES)
def test_a_query_asks_for_metrics_and_labels_that_exist(where: str) -> None:
    check(QUERIES[where])


def test_a_trigger_asks_for_metrics_and_labels_that_exist() -> None:
    for query in triggers().values():
        check(query)


def check(query: str) -> None:
    known = series()
    asked = list(series_in(query))

    assert asked
    assert [item.name for item in asked if item.name not in known] == []
    for item in asked:
        assert item.labels <= known[item.name], f"{item.name} has no label {item.labels - known[item.name]}"
    shared = frozenset[str]().union(*(known[item.name] for item in asked))
    assert grouped_by(query) <= shared | TARGET_LABELS


def test_every_query_is_promql(tmp_path: Path) -> None:
    queries = QUERIES | triggers()
    rules = [{"record": f"query:{place}", "expr": query} for place, query in enumerate(queries.values())]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))

    done = run([promtool(), "check", "rules", str(file)])

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


VALUES = {
    "role": ["agent", "tool"],
    "agent": ["analyst"],
    "model": ["sonnet"],
    "to": ["haiku"],
    "tool": ["refund"],
    "limit": ["crm"],
    "topic": ["shop.agent.log"],
    "version": ["1.0"],
    "python": ["3.13"],
    "status": ["completed", "failed"],
    "code": ["", "budget_exceeded", "rejected"],
    "outcome": ["ok", "error", "refused", "unknown", "expired"],
    "reason": ["bytes", "queue", "unreadable"],
    "kind": ["input", "output", "cache_read", "call"],
    "side": ["given", "lost"],
    "le": ["0.5", "60", "+Inf"],
}
PODS = {
    "rel-anabranch-agents-a": "",
    "rel-anabranch-agents-b": "",
    "rel-anabranch-tools-io-a": "io",
    "rel-anabranch-tools-io-b": "io",
    "rel-anabranch-tools-reports-a": "reports.pdf",
    "rel-agents-agents-a": "",
    "rel-agents-tools-io-a": "io",
}


def every_series() -> Iterator[dict[str, str]]:
    """Of every metric, in several workers, with several values of each label."""
    for name, labels in series().items():
        own = sorted(labels - TARGET_LABELS - {"queue"})
        for pod, queue in PODS.items():
            target = {"namespace": "prod", "pod": pod, "instance": pod, "cluster": "eu-1"}
            target |= {"queue": queue} if "queue" in labels else {}
            for values in product(*(VALUES[label] for label in own)):
                matched = ",".join(
                    f'{key}="{text}"' for key, text in (target | dict(zip(own, values, strict=True))).items()
                )
                yield {"series": f"{name}{{{matched}}}", "values": "1+1x20"}


def test_every_query_answers_with_what_workers_expose(tmp_path: Path) -> None:
    """Nothing is many-to-many, and but for thresholds nothing is empty: promtool tells what it did not expect."""
    queries = QUERIES | triggers()
    wanted = [{"expr": query, "eval_time": "20m", "exp_samples": []} for query in queries.values()]
    test = {"interval": "1m", "input_series": list(every_series()), "promql_expr_test": wanted}
    file = tmp_path / "queries.test.yaml"
    file.write_text(yaml.safe_dump({"tests": [test]}))

    done = run([promtool(), "test", "rules", str(file)])

    told = done.stdout + done.stderr
    assert not re.search(r"\berr: ", told), told
    answered = {json.loads(text) for text in re.findall(r'expr: ("(?:[^"\\]|\\.)*"), time', told)}
    assert {
        where for where, query in queries.items() if query not in answered and not where.startswith("alert")
    } == set()


@pytest.mark.parametrize("where", panels())
def test_a_panel_looks_at_counters_through_a_window(where: str) -> None:
    query = QUERIES[where]
    counters = {item.name for item in series_in(query) if item.name.endswith(("_total", "_bucket"))}

    assert counters == windowed(query)


def test_the_dashboard_shows_every_metric_but_those_of_a_single_call() -> None:
    shown = {re.sub(r"_bucket$", "", item.name) for query in panels().values() for item in series_in(query)}

    assert METRICS.keys() - shown == set()


def test_the_dashboard_shows_load_waiting_limits_failures_and_cost() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]

    assert rows == ["Load", "Waiting", "Limits", "Failures", "Cost", "Workers"]


def test_panels_lie_side_by_side_with_ids_of_their_own() -> None:
    found = dashboard()["panels"]
    cells = [
        (x, y)
        for spot in (panel["gridPos"] for panel in found)
        for x in range(spot["x"], spot["x"] + spot["w"])
        for y in range(spot["y"], spot["y"] + spot["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in found}) == len(found)
    assert all(panel["description"] for panel in found if panel["type"] != "row")


def test_the_dashboard_asks_the_source_that_is_chosen() -> None:
    names = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(dashboard()["panels"])))

    assert names == {"datasource", "namespace"} == used
    assert set(re.findall(r'"uid": "([^"]*)"', json.dumps(dashboard()["panels"]))) == {"${datasource}"}


def test_autoscalers_ask_the_adapter_for_metrics_that_it_makes() -> None:
    made = {rule["name"]["as"] for rule in adapter_rules()}
    autoscalers = render(value_sets()["hpa"]).all("HorizontalPodAutoscaler")
    metrics = [metric for scaler in autoscalers for metric in scaler["spec"]["metrics"]]
    asked = {metric["external"]["metric"]["name"] for metric in metrics if metric["type"] == "External"}

    assert asked == made


def test_an_agent_scales_on_its_lag_only_while_it_has_no_room() -> None:
    """Requests that wait for a queue of tools are not helped by more agents."""
    queries = [query for where, query in triggers().items() if where.endswith("saturated-lag")]

    assert queries
    assert all(query.count('reason="bytes"') == 1 and "* on (instance)" in query for query in queries)
