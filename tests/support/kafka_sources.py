"""Where the Apache Kafka of the tests comes from: Maven's jars, or a Docker image.

Responsible for: choosing one by what this machine has, fetching it once, and the settings and commands of one node.
Must never: start a broker, or fetch anything when it is imported.
Called by: `tests.support.kafka`.
"""

from __future__ import annotations

import fcntl
import re
import secrets
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.process import Command

ROOT = Path(__file__).resolve().parents[2]
POM = Path(__file__).with_name("kafka-pom.xml")
LIBRARIES = ROOT / "build" / "kafka" / "libs"
OLDEST_JAVA = 17
USERS = ("agents", "tools")
FETCH_DEADLINE_S = 600.0
JVM = ["-Xms128m", "-Xmx512m", "-XX:TieredStopAtLevel=1"]


class KafkaUnavailable(RuntimeError):
    """This machine has nothing to run Kafka with; the message says what to install."""


class KafkaFailed(RuntimeError):
    """Kafka could not be fetched, formatted or started; the message has the end of the tool's output."""


@dataclass(frozen=True)
class Node:
    """One KRaft node, broker and controller: its ports on 127.0.0.1 and its own empty folder.

    At `port` everybody may do everything. At `guarded_port`, if there is one, clients log in (SASL/PLAIN, a password is
    the user's name), and access control lists say what they may do.
    """

    home: Path
    port: int
    controller_port: int
    guarded_port: int | None = None


class Source(Protocol):
    """A way to run Kafka."""

    def fetch(self) -> None:
        """Get what it takes, if it is not there yet; may take minutes. Raises KafkaFailed."""

    def format(self, node: Node) -> None:
        """Write the node's settings and format its storage, once. Raises KafkaFailed."""

    def command(self, node: Node) -> Command:
        """What runs the node; again after a stop, on the same data."""

    def remove(self, node: Node) -> None:
        """Delete what `format` made outside of the node's folder."""


def find_source() -> Source:
    """Maven's jars if `java` and `mvn` are there, else Docker. Raises KafkaUnavailable."""
    java, mvn = _java_problem(), _maven_problem()
    if not java and not mvn:
        return Jars()
    docker = docker_problem()
    if not docker:
        return Docker()
    found = "; ".join(filter(None, (java, mvn, docker)))
    raise KafkaUnavailable(
        f"these tests need a real Apache Kafka {kafka_version()}, and nothing is here to run it with ({found}).\n"
        f"Do one of these:\n"
        f"  - install a Java runtime, {OLDEST_JAVA} or newer, and Maven, so that `java` and `mvn` are on the PATH\n"
        f"    (Debian and Ubuntu: apt install default-jre-headless maven; macOS: brew install openjdk maven);\n"
        f"  - install and start Docker;\n"
        f"  - set ANABRANCH_TEST_BOOTSTRAP=host:port to use a Kafka that is already running."
    )


def kafka_version() -> str:
    """The version that the tests run against, as the POM has it."""
    match = re.search(r"<kafka\.version>([^<]+)<", POM.read_text())
    if match is None:
        raise KafkaFailed(f"{POM.name} names no <kafka.version>")
    return match[1]


class Jars:
    """Kafka from Maven's jars, run by the machine's own Java."""

    jvm: Sequence[str] = JVM
    format_options: Sequence[str] = ()

    def fetch(self) -> None:
        with _locked(LIBRARIES.with_suffix(".lock")):
            if not self._folder.exists():
                _copy_jars(self._folder)

    def format(self, node: Node) -> None:
        lines = [f"{name}={value}\n" for name, value in self.settings(node).items()]
        self._properties(node).write_text("".join(lines).replace("\\", "/"))
        storage = ["kafka.tools.StorageTool", "format", "-t", self.cluster_id(), "-c", str(self._properties(node))]
        _run([*self._java, *storage, *self.format_options], "format Kafka's storage", deadline_s=60)

    def settings(self, node: Node) -> dict[str, str]:
        """The broker's settings."""
        return settings(node, host="127.0.0.1", log_dir=str(node.home / "data"))

    def cluster_id(self) -> str:
        """Of the cluster that a node is formatted for: of its own, here."""
        return new_cluster_id()

    def command(self, node: Node) -> Command:
        return Command([*self._java, "kafka.Kafka", str(self._properties(node))], remove=node.home)

    def remove(self, node: Node) -> None:
        """Everything is in the node's folder."""

    @property
    def _folder(self) -> Path:
        return LIBRARIES / kafka_version()

    @property
    def _java(self) -> list[str]:
        return ["java", *self.jvm, "-cp", str(self._folder / "*")]

    def _properties(self, node: Node) -> Path:
        return node.home / "server.properties"


class Docker:
    """Kafka from the image that the Apache project publishes; the image formats its storage itself."""

    def fetch(self) -> None:
        if subprocess.run(["docker", "image", "inspect", self._image], capture_output=True).returncode:
            _run(["docker", "pull", "--quiet", self._image], "pull Kafka's image", FETCH_DEADLINE_S)

    def format(self, node: Node) -> None:
        # No host: inside the container all interfaces; `publish` lets only the loopback in from outside.
        values = settings(node, host="", log_dir="/tmp/anabranch-kafka")
        env = {"KAFKA_" + name.upper().replace(".", "_"): value for name, value in values.items()}
        env |= {"CLUSTER_ID": new_cluster_id(), "KAFKA_HEAP_OPTS": " ".join(JVM)}
        flags = [part for name, value in env.items() for part in ("--env", f"{name}={value}")]
        ports = [port for port in (node.port, node.guarded_port) if port is not None]
        flags += [part for port in ports for part in ("--publish", f"127.0.0.1:{port}:{port}")]
        create = ["docker", "create", "--name", self._container(node), *flags, self._image]
        _run(create, "create Kafka's container", deadline_s=60)

    def command(self, node: Node) -> Command:
        name = self._container(node)
        return Command(
            ["docker", "start", "--attach", name],  # passes our SIGTERM on to the container
            on_kill=[["docker", "kill", name]],
            when_orphaned=[self._removal(node)],
            remove=node.home,
        )

    def remove(self, node: Node) -> None:
        subprocess.run(self._removal(node), capture_output=True)

    @property
    def _image(self) -> str:
        return f"apache/kafka:{kafka_version()}"

    def _container(self, node: Node) -> str:
        return node.home.name

    def _removal(self, node: Node) -> list[str]:
        return ["docker", "rm", "--force", "--volumes", self._container(node)]


def settings(node: Node, host: str, log_dir: str) -> dict[str, str]:
    """The broker's settings: one node, small, quick to rebalance, creating no topic unasked."""
    plain = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{node.controller_port}",
        "listeners": f"PLAINTEXT://{host}:{node.port},CONTROLLER://{host}:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dir": log_dir,
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        # A killed broker is let in again only when its old session has ended, after 9 s if nothing is said.
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "500",
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # Each test makes some hundred partitions and drops them: keep each small, and let go of it soon.
        "log.index.size.max.bytes": "1048576",
        "log.segment.delete.delay.ms": "1000",
    }
    return plain if node.guarded_port is None else plain | _guarded(plain, host, node.guarded_port)


def _guarded(plain: dict[str, str], host: str, port: int) -> dict[str, str]:
    """Those of a second listener, behind which everything is allowed but what an access control list denies."""
    users = " ".join(f'user_{name}="{name}"' for name in USERS)
    protocols = plain["listener.security.protocol.map"]
    return {
        "listeners": f"{plain['listeners']},GUARDED://{host}:{port}",
        "advertised.listeners": f"{plain['advertised.listeners']},GUARDED://127.0.0.1:{port}",
        "listener.security.protocol.map": f"{protocols},GUARDED:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.guarded.plain.sasl.jaas.config": (
            f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "true",
    }


def new_cluster_id() -> str:
    """Kafka's own form of a random UUID: 22 characters, and none of the reserved ids, which begin with a dash."""
    return "A" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


def _copy_jars(folder: Path) -> None:
    """Fill `folder` with Kafka's jars; it appears whole or not at all, even if we are killed."""
    partial = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
    try:
        _run(["mvn", "-q", "-B", "-f", str(POM), *goal], "fetch Kafka's jars", FETCH_DEADLINE_S)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time: Maven's local repository does not bear two. Freed by the system if we die."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(argv: list[str], what: str, deadline_s: float) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=deadline_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise KafkaFailed(f"could not {what}: `{argv[0]}` did not end within {deadline_s:g} s") from error
    if done.returncode:
        output = (done.stdout + done.stderr).strip()[-3000:]
        raise KafkaFailed(f"could not {what}: `{argv[0]}` ended with status {done.returncode}:\n{output}")


def _java_problem() -> str:
    """Why `java` will not do, or an empty string. macOS has a `java` that only says that there is none."""
    answer = _ask(["java", "-version"])
    if answer is None:
        return "java: not found"
    match = re.search(r'version "(\d+)', answer)
    if match is None:
        return "java: does not tell its version"
    return "" if int(match[1]) >= OLDEST_JAVA else f"java: is {match[1]}, older than {OLDEST_JAVA}"


def _maven_problem() -> str:
    return "" if shutil.which("mvn") else "mvn: not found"


def docker_problem() -> str:
    """Why Docker will not do, or an empty string."""
    if not shutil.which("docker"):
        return "docker: not found"
    running = _ask(["docker", "version", "--format", "{{.Server.Version}}"]) is not None
    return "" if running else "docker: its daemon does not answer"


def _ask(argv: list[str]) -> str | None:
    """What a command says, or None if it is not there, fails or does not answer."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None
