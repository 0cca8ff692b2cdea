"""`compose.yaml`: that it is one, and that everything it names is there.

Responsible for: the schema of the Compose Specification, mounted paths, commands that exist, scraping that meets the
workers, rules and dashboard of the chart. Must never: start anything.
Called by: pytest.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from tests.support.chart import CHART, ROOT
from tests.support.commands import parsed
from tests.support.instruments import COMPOSE, module_folder, promtool, run
from tests.support.kafka_sources import kafka_version

from anabranch.cli.commands.worker import GRACE_S
from anabranch.declarations.loading import load_app
from anabranch.environment import load

pytestmark = pytest.mark.timeout(300)  # the schema and promtool may have to be fetched first

FILE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = FILE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("anabranch:")}


def environment(name: str) -> dict[str, str]:
    """As the service sees it, with nothing set outside."""
    return {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text) for key, text in SERVICES[name]["environment"].items()}


def words(name: str) -> list[str]:
    """Every word of the service's command, those within a shell's text too."""
    return [word for text in SERVICES[name]["command"] for word in shlex.split(text.replace("$$", "$"))]


def test_it_is_a_compose_file() -> None:
    schema = json.loads((module_folder(COMPOSE) / "schema" / "compose-spec.json").read_text())

    assert [error.message for error in jsonschema_rs.Draft7Validator(schema).iter_errors(FILE)] == []


def test_all_parts_are_there() -> None:
    assert SERVICES.keys() == {"kafka", "topics", "model", "agents", "tools", "load", "prometheus", "grafana"}


def test_what_is_mounted_is_there_and_cannot_be_written_to() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert rest.endswith(":ro")
            else:
                assert source in FILE["volumes"]


def test_images_are_pinned_and_kafka_is_that_of_the_tests() -> None:
    for service in SERVICES.values():
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", service["image"])
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{kafka_version()}"


def test_nothing_is_open_to_the_network() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_whom_a_service_waits_for_can_become_what_it_waits_for() -> None:
    for service in SERVICES.values():
        needed = service.get("depends_on", {})
        for other, how in needed.items() if isinstance(needed, dict) else []:
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[other]["healthcheck"], other


def test_our_image_is_built_once_and_asked_of_no_registry() -> None:
    """Builds of the same tag at the same time fail on a machine that has not got it: image "...": already exists."""
    assert [name for name, service in OURS.items() if "build" in service] == ["topics"]
    assert {service["pull_policy"] for service in OURS.values()} == {"never"}
    assert {service["image"] for service in OURS.values()} == {f"anabranch:{version('anabranch')}"}


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_restricted(name: str) -> None:
    service = OURS[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["tmpfs"] == ["/tmp"]
    assert int(service["stop_grace_period"].removesuffix("s")) > load(None, environment(name)).worker.drain_s + GRACE_S


@pytest.mark.parametrize("name", ["topics", "agents", "tools", "load"])
def test_our_commands_are_such_as_there_are(name: str) -> None:
    """Each is parsed by the command line itself; the files that they name are in the checkout."""
    text = words(name)
    if "anabranch" in text:
        text = text[text.index("anabranch") + 1 :]
        text = text[: next((place for place, word in enumerate(text) if word in ("||", "&&", ";")), len(text))]
    parsed(text)


def test_what_the_commands_name_is_there() -> None:
    named = {word for name in OURS for word in words(name) if re.fullmatch(r"examples/[\w.]+", word)}

    assert named == {"examples/shop.py", "examples/shop_model.py", "examples/customers.jsonl"}
    assert all((ROOT / path).is_file() for path in named)


def test_the_workers_serve_the_app_in_the_namespace_that_is_set() -> None:
    app = load_app(str(ROOT / "examples" / "shop.py"))

    assert load(None, environment("agents")).worker.namespace == app.name
    assert app.queues() == [words("tools")[-1]]
    assert words("load")[words("load").index("--agent") + 1] in app.agents


def test_the_model_is_where_the_agents_look_for_it() -> None:
    port = words("model")[words("model").index("--port") + 1]

    assert environment("agents")["ANTHROPIC_BASE_URL"] == f"http://model:{port}"
    assert "model" in SERVICES["agents"]["depends_on"]  # it comes before them, and goes after them


def test_only_the_agents_get_the_key_of_the_model_and_it_masks_nothing_that_logs_should_show() -> None:
    """A log masks the key wherever it stands, and so would mask a model of that name."""
    key = environment("agents")["ANTHROPIC_API_KEY"]

    assert [name for name in OURS if "ANTHROPIC_API_KEY" in environment(name)] == ["agents"]
    assert key not in str(SERVICES).replace(f"ANTHROPIC_API_KEY:-{key}", "")


def test_kafkas_health_is_asked_without_starting_java() -> None:
    """Each of Kafka's commands takes seconds of a core, and more than the check's time on a busy machine."""
    listener = environment("kafka")["KAFKA_LISTENERS"].split(",")[1]
    [*_, question] = SERVICES["kafka"]["healthcheck"]["test"]

    assert SERVICES["kafka"]["healthcheck"]["test"][:2] == ["CMD", "bash"]
    assert question.endswith(f"/dev/tcp/localhost/{listener.rpartition(':')[2]}")


def test_prometheus_takes_its_settings_and_scrapes_where_workers_answer(tmp_path: Path) -> None:
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["prometheus"]["volumes"])
    for source, target in mounts.items():
        if target.startswith("/etc/prometheus/"):
            shutil.copy(ROOT / source, tmp_path / Path(target).name)

    done = run([promtool(), "check", "config", str(tmp_path / "prometheus.yml")])

    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout
    [scraped] = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    [found] = scraped["dns_sd_configs"]
    for name in found["names"]:
        assert load(None, environment(name)).worker.http_port == found["port"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    mounts = {target: source for source, target, _ in (mount.split(":") for mount in SERVICES["grafana"]["volumes"])}
    [source] = yaml.safe_load((ROOT / "deploy/grafana/datasource.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((ROOT / "deploy/grafana/dashboards.yaml").read_text())["providers"]

    assert source["url"] == "http://prometheus:9090"
    shown = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(shown).parent == Path(provider["options"]["path"])
    assert (ROOT / mounts[shown]).samefile(CHART / "files" / "dashboard.json")
