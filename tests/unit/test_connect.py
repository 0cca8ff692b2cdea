"""What is refused of the settings before anybody connects.

Responsible for: `connect.py`, of the servers that are named. Must never: open a socket. Called by: pytest.
"""

from __future__ import annotations

import pytest

from anabranch.config import KafkaSettings
from anabranch.errors import ConfigError
from anabranch.kafka.connect import client_arguments


@pytest.mark.parametrize(
    ("named", "servers"),
    [
        ("localhost:9092", "localhost:9092"),
        ("a, b:9093 ,, c:9094,", "a,b:9093,c:9094"),
        ("[::1]:9092,::1,127.0.0.1", "[::1]:9092,::1,127.0.0.1"),
        ("kafka_1.example.com:9092", "kafka_1.example.com:9092"),
        ("bücher.example:9092,kafka.example.com.:9092", "bücher.example:9092,kafka.example.com.:9092"),
    ],
)
def test_servers_are_named_by_host_and_port(named: str, servers: str) -> None:
    assert client_arguments(KafkaSettings(bootstrap=named))["bootstrap_servers"] == servers


@pytest.mark.parametrize(
    "server",
    ["localhost:abc", "localhost:", "localhost:99999", "localhost:0", "localhost:-5", "kafka:9092/", ":9092",
     "http://kafka:9092", "http://kafka", "[::1:9092", "a:9092;b:9092", "a:9092 b:9092",
     "a b", "me@kafka:9092", "*:9092", "x" * 70 + ":9092", "a..b:9092"],
)  # fmt: skip
def test_what_is_no_server_is_refused_by_its_name(server: str) -> None:
    with pytest.raises(ConfigError, match="is no server of Kafka: give a host and its port") as told:
        client_arguments(KafkaSettings(bootstrap=f"good:9092,{server}"))
    assert repr(server) in str(told.value)


@pytest.mark.parametrize("none", ["", " ", ","])
def test_no_server_at_all_is_refused(none: str) -> None:
    with pytest.raises(ConfigError, match="ANABRANCH_BOOTSTRAP="):
        client_arguments(KafkaSettings(bootstrap=none))
