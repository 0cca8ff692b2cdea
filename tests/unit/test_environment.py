"""Settings: from a file and the environment, refused with the name of what is wrong, shown without secrets.

Responsible for: `environment.py`, and the defaults of `config.py`.
Must never: look at the environment of the test itself.
Called by: pytest.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from anabranch.config import ModelLimits, Settings
from anabranch.environment import load, misspelt, shown, sources
from anabranch.errors import ConfigError
from anabranch.prices import Price


def written(folder: Path, text: str) -> Path:
    file = folder / "settings.toml"
    file.write_text(text)
    return file


def test_without_anything_the_defaults_are_in_force() -> None:
    assert load(environment={}) == Settings()


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, '[kafka]\nbootstrap = "file:1"\npartitions = 3\n[agent]\nmodel_concurrency = 5\n')
    found = load(file, {"ANABRANCH_BOOTSTRAP": "env:2", "ANABRANCH_AGENT_MODEL_CONCURRENCY": "7"})
    assert (found.kafka.bootstrap, found.kafka.partitions, found.agent.model_concurrency) == ("env:2", 3, 7)


def test_every_prefix_reaches_its_section() -> None:
    found = load(
        environment={
            "ANABRANCH_DRAIN_S": "2.5", "ANABRANCH_IDEMPOTENT": "false", "ANABRANCH_TOOL_THREADS": "4",
            "ANTHROPIC_API_KEY": "k", "ANABRANCH_HTTP_PORT": "",
        }
    )  # fmt: skip
    assert (found.worker.drain_s, found.kafka.idempotent, found.tool.threads) == (2.5, False, 4)
    assert (found.anthropic.api_key, found.worker.http_port) == ("k", 0)


def test_prices_come_from_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, '[prices."m-1"]\ninput = 3\noutput = 15.5\n')
    assert load(file, {}).prices == {"m-1": Price(3.0, 15.5)}


def test_limits_of_models_come_from_the_file_and_are_shown(tmp_path: Path) -> None:
    file = written(tmp_path, '[models."m-*"]\nrequests_per_minute = 50\noutput_tokens_per_minute = 8000\n')
    found = load(file, {})
    assert found.models == {"m-*": ModelLimits(requests_per_minute=50, output_tokens_per_minute=8000)}
    assert shown(found)["models"]["m-*"] == {
        "requests_per_minute": 50,
        "input_tokens_per_minute": None,
        "output_tokens_per_minute": 8000,
        "count_cache_reads": False,
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[kafka", "is not TOML"),
        ("[levitation]\nx = 1", r"there is no section \[levitation\]"),
        ("[kafka]\nbootstarp = 'x'", "has no setting 'bootstarp'"),
        ("kafka = 5", "kafka must be a table"),
        ("prices = 5", "prices must be a table"),
        ("[prices.m]\ninput = 1\noutput = 1\ncache_reed = 1", "has no setting 'cache_reed'"),
        ("[prices.m]\ninput = 1", r"prices.m.output"),
        ("[models.m]\nrpm = 1", r"\[models.m\] has no setting 'rpm'; it has count_cache_reads, input_tokens_per"),
        ("[models.m]\nrequests_per_minute = 0", r"models.m.requests_per_minute"),
        ("[prices.m]\ninput = -1\noutput = 1", r"prices.m.input"),
        ("[agent]\nmodel_concurrency = 0", r"agent.model_concurrency \(ANABRANCH_AGENT_MODEL_CONCURRENCY"),
        ("[worker]\ndrain_s = inf", "worker.drain_s"),
        ("[worker]\nlog_level = 'loud'", "'loud'"),
        ("[kafka]\npartitions = true", r"\[kafka\] partitions is true"),
        ("[models.m]\nrequests_per_minute = true", r"\[models.m\] requests_per_minute is true"),
        ("[prices.m]\ninput = 1\noutput = false", r"\[prices.m\] output is false"),
        ("[worker]\nheartbeat_s = 0", r"worker.heartbeat_s \(ANABRANCH_HEARTBEAT_S"),
        ("[worker]\nheartbeat_s = 60", "worker.heartbeat_s"),
        ("[kafka]\nsession_timeout_s = 1e9", r"kafka.session_timeout_s \(ANABRANCH_SESSION_TIMEOUT_S"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(written(tmp_path, text), {})


def test_a_mistake_in_the_environment_is_named() -> None:
    with pytest.raises(ConfigError, match=r"kafka.partitions \(ANABRANCH_PARTITIONS.*'many'"):
        load(environment={"ANABRANCH_PARTITIONS": "many"})


@pytest.mark.parametrize("section", ["kafka", "worker"])
def test_a_variable_beside_a_section_that_is_no_table_is_told(tmp_path: Path, section: str) -> None:
    environment = {"ANABRANCH_BOOTSTRAP": "x", "ANABRANCH_DRAIN_S": "1"}
    with pytest.raises(ConfigError, match="must be a table"):
        load(written(tmp_path, f"{section} = 1"), environment)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the settings file"):
        load(tmp_path / "none.toml", {})


def test_secrets_are_masked() -> None:
    found = shown(load(environment={"ANTHROPIC_API_KEY": "sk-1", "ANABRANCH_SASL_PASSWORD": "pw"}))
    assert "sk-1" not in str(found)
    assert "pw" not in str(found)
    assert found["anthropic"]["api_key"] == "********"
    assert found["anthropic"]["auth_token"] is None


def test_what_may_be_true_or_false_is_still_so(tmp_path: Path) -> None:
    text = "[kafka]\nidempotent = false\n[telemetry]\ncapture_content = true\n[models.m]\ncount_cache_reads = true\n"
    found = load(written(tmp_path, text), {})
    assert (found.kafka.idempotent, found.telemetry.capture_content) == (False, True)
    assert found.models["m"].count_cache_reads


def test_a_password_in_the_address_of_the_model_is_not_shown() -> None:
    found = shown(load(environment={"ANTHROPIC_BASE_URL": "https://me:hunter2@proxy:8443/v?key=k-1"}))
    assert found["anthropic"]["base_url"] == "https://proxy:8443/v"


def test_a_variable_that_is_nearly_a_setting_is_told_of_and_what_others_set_is_not() -> None:
    given = {
        "ANABRANCH_BOOTSTRP": "x",
        "ANABRANCH_AGENT_MODEL_CONCURENCY": "1",
        "ANABRANCH_bootstrap": "x",
        "ANABRANCH_SASL_PASSWORD_FIEL": "x",
        "ANABRANCH_SERVICE_HOST": "10.0.0.1",  # what Kubernetes sets for a service of our name
        "ANABRANCH_PORT_9464_TCP": "tcp://10.0.0.1:9464",
        "ANABRANCH_TEST_BOOTSTRAP": "x",
        "BOOTSTRP": "x",
        "ANABRANCH_BOOTSTRAP": "x",
    }
    assert misspelt(given) == {
        "ANABRANCH_BOOTSTRP": "ANABRANCH_BOOTSTRAP",
        "ANABRANCH_AGENT_MODEL_CONCURENCY": "ANABRANCH_AGENT_MODEL_CONCURRENCY",
        "ANABRANCH_bootstrap": "ANABRANCH_BOOTSTRAP",
        "ANABRANCH_SASL_PASSWORD_FIEL": "ANABRANCH_SASL_PASSWORD_FILE",
    }


# --- secrets in files -------------------------------------------------------------------------------------------


def test_a_secret_may_lie_in_a_file_of_its_own(tmp_path: Path) -> None:
    secret = written(tmp_path, "p w=1\n")
    found = load(environment={"ANABRANCH_SASL_PASSWORD_FILE": str(secret), "ANTHROPIC_API_KEY_FILE": str(secret)})
    assert (found.kafka.sasl_password, found.anthropic.api_key) == ("p w=1", "p w=1")
    assert "p w=1" not in str(shown(found))


def test_a_secrets_file_may_be_named_in_the_settings_and_the_environment_wins(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from-a-file")
    file = written(tmp_path, f'[kafka]\nsasl_password_file = "{secret}"\nssl_password = "plain"\n')
    assert load(file, {}).kafka.sasl_password == "from-a-file"
    assert load(file, {"ANABRANCH_SASL_PASSWORD": "direct"}).kafka.sasl_password == "direct"
    assert load(file, {"ANABRANCH_SSL_PASSWORD_FILE": str(secret)}).kafka.ssl_password == "from-a-file"
    assert sources(file, {})["kafka", "sasl_password"] == str(file)
    assert sources(None, {"ANABRANCH_SSL_PASSWORD_FILE": "x"})["kafka", "ssl_password"] == "ANABRANCH_SSL_PASSWORD_FILE"


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"ANABRANCH_SASL_PASSWORD_FILE": "/nowhere/x"}, "ANABRANCH_SASL_PASSWORD_FILE=/nowhere/x cannot be read"),
        ({"ANABRANCH_SASL_PASSWORD_FILE": "/dev/null"}, "is empty"),
        (
            {"ANABRANCH_SASL_PASSWORD_FILE": "/dev/null", "ANABRANCH_SASL_PASSWORD": "pw"},
            "both ANABRANCH_SASL_PASSWORD and ANABRANCH_SASL_PASSWORD_FILE are set",
        ),
    ],
)
def test_a_secrets_file_that_does_not_do_is_told(environment: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(environment=environment)


def test_only_secrets_lie_in_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no setting 'bootstrap_file'"):
        load(written(tmp_path, '[kafka]\nbootstrap_file = "x"\n'), {})


def test_a_secret_of_the_wrong_kind_is_told_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kafka\.sasl_password") as told:
        load(written(tmp_path, "[kafka]\nsasl_password = 4711\n"), {})
    assert "4711" not in str(told.value)
