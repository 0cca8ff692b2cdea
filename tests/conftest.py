"""Fixtures for all tests: a real Kafka, the embedded broker, a namespace of one's own, a seed that can be repeated.

Responsible for: starting brokers only if a test asks, one of each kind a session; the tiers' order and marks.
Must never: know about agents, tools or topics.
Called by: pytest.

Environment: `ANABRANCH_TEST_BOOTSTRAP` (a Kafka that is running already), `ANABRANCH_SEED` (repeat a session's random
choices), `CI=true` (nothing is skipped for want of a tool).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from aiokafka.errors import KafkaError

from tests.support import kafka as kafka_server
from tests.support import tansu as tansu_server
from tests.support.kafka import BOOTSTRAP_VARIABLE
from tests.support.kafka_admin import answers, drop_topics
from tests.support.kafka_secured import USERS, SecuredKafka, launch_secured
from tests.support.kafka_sources import KafkaFailed, KafkaUnavailable, find_source
from tests.support.need import unavailable

TIERS = ("unit", "integration", "acceptance")
SEED = pytest.StashKey[int]()

hypothesis.settings.register_profile("anabranch", deadline=None, print_blob=True, derandomize=False)
hypothesis.settings.load_profile("anabranch")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the session's seed, for ourselves and, before its own hook runs, for Hypothesis."""
    config.stash[SEED] = int(os.environ.get("ANABRANCH_SEED") or secrets.randbits(32))
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(config.stash[SEED])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how to repeat the random choices of a session in which something failed."""
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"ANABRANCH_SEED={config.stash[SEED]} repeats this session's random choices")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and run the cheap tiers first."""
    for item in items:
        item.add_marker(_tier(item))
    items.sort(key=lambda item: TIERS.index(_tier(item)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch Kafka now, if a test will ask for it: it may take longer than a test is given."""
    ours = {"broker", "cluster", "secured"} | (set() if os.environ.get(BOOTSTRAP_VARIABLE) else {"kafka"})
    wanted = any(ours.intersection(getattr(item, "fixturenames", ())) for item in session.items)
    if not wanted or session.config.option.collectonly:
        return
    try:
        find_source().fetch()
    except KafkaUnavailable:
        return  # the fixture says so, for each test
    except KafkaFailed as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture(scope="session")
def _own_kafka() -> Iterator[kafka_server.Broker]:
    try:
        server = kafka_server.launch()
    except KafkaUnavailable as error:
        unavailable(str(error))
    except KafkaFailed as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> str:
    """`host:port` of a real Apache Kafka, one for the whole session."""
    external = os.environ.get(BOOTSTRAP_VARIABLE)
    if not external:
        own: kafka_server.Broker = request.getfixturevalue("_own_kafka")
        return own.bootstrap
    if not answers(external):
        pytest.fail(f"no Kafka answers at {BOOTSTRAP_VARIABLE}={external}", pytrace=False)
    return external


@pytest.fixture
def broker(_own_kafka: kafka_server.Broker) -> Iterator[kafka_server.Broker]:
    """The session's Kafka as something to stop, start and kill; it runs again when the test is over.

    Use its `bootstrap` rather than `kafka`, which may be a server that is not ours to break.
    """
    _own_kafka.start()
    yield _own_kafka
    _own_kafka.start()


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """A Kafka where everybody logs in and nothing is allowed that is not granted, one for the whole session."""
    try:
        kafka = launch_secured(tmp_path_factory.mktemp("secrets"))
    except KafkaUnavailable as error:
        unavailable(str(error))
    except KafkaFailed as error:
        pytest.fail(str(error), pytrace=False)
    with kafka.broker:
        yield kafka


@pytest.fixture(scope="session")
def users() -> Iterator[str]:
    """Names that nobody has been granted anything for."""
    return iter(USERS)


@pytest.fixture(scope="session")
def tansu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of the embedded broker, one for the whole session."""
    with tansu_server.serve(tmp_path_factory.mktemp("tansu")) as bootstrap:
        yield bootstrap


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace that no other test has, short, in lower case; its topics on Kafka are dropped after the test."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    name = f"{words[:24].strip('-')}-{secrets.token_hex(4)}"
    bootstrap: str | None = request.getfixturevalue("kafka") if "kafka" in request.fixturenames else None
    own: kafka_server.Broker | None = request.getfixturevalue("broker") if "broker" in request.fixturenames else None
    secured: SecuredKafka | None = request.getfixturevalue("secured") if "secured" in request.fixturenames else None
    yield name
    if own is not None:
        own.start()  # the test may have ended while it was down
    for server in {own.bootstrap if own else None, secured.open if secured else None, bootstrap} - {None}:
        try:
            drop_topics(str(server), f"{name}.")
        except (KafkaError, OSError, TimeoutError) as error:
            warnings.warn(f"the topics of {name} stay on {server}: {error!r}", stacklevel=1)


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """The session's seed, printed into the report of a failed test; `ANABRANCH_SEED` sets it."""
    sys.stdout.write(f"ANABRANCH_SEED={pytestconfig.stash[SEED]}\n")
    return pytestconfig.stash[SEED]


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command that ran in this process sends its log to where that test caught it, and that is closed afterwards."""
    level, handlers = logging.root.level, list(logging.root.handlers)
    yield
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers


def _tier(item: pytest.Item) -> str:
    """The folder of `tests` in which the test is."""
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    if folder not in TIERS:
        raise pytest.UsageError(f"{item.path} is in none of the tiers: tests/{', tests/'.join(TIERS)}")
    return folder
