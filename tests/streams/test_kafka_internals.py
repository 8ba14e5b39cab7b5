"""The private parts of kafka-python that the client uses. A test names what a new version of it has changed."""

import inspect
import re
from importlib import import_module
from importlib.metadata import requires, version
from typing import Any

import pytest

import trionode_kafka.client  # noqa: F401  # imports kafka-python without its warning

#: Module, name in it, and the parameters that we rely on; None for a value.
USED: list[tuple[str, str, tuple[str, ...] | None]] = [
    ("kafka.consumer.fetcher", "Fetcher.PartitionRecords", ("fetch_offset", "tp", "records")),
    ("kafka.consumer.fetcher", "Fetcher.PartitionRecords.take", ("n",)),
    ("kafka.consumer.fetcher", "Fetcher.PartitionRecords.drain", ()),
    ("kafka.net.inet", "KafkaNetSocket", ("proxy_url",)),
    ("kafka.net.inet", "KafkaNetSocket.register_class", ("klass",)),
    ("kafka.net.inet", "KafkaNetSocket.sock_connect", ("net", "sock", "sockaddr", "timeout_at")),
    ("kafka.net.manager", "KafkaConnectionManager", ("net",)),
    (
        "kafka.net.manager",
        "KafkaConnectionManager.get_connection",
        ("node_id", "timeout_ms", "pop_on_close", "refresh_metadata_on_err"),
    ),
    ("kafka.net.manager", "KafkaConnectionManager.close", ()),
    ("kafka.net.manager", "KafkaConnectionManager.call_soon", ("coro",)),
    ("kafka.net.connection", "KafkaConnection.init_future", None),
    ("kafka.net.selector", "NetworkSelector.run", ("coro",)),
    ("kafka.net.selector", "NetworkSelector.call_later", ("delay",)),
    ("kafka.net.selector", "NetworkSelector.call_soon_threadsafe", ("callback",)),
    ("kafka.net.selector", "NetworkSelector.close", ()),
    ("kafka.cluster", "ClusterMetadata.bootstrap_brokers", ()),
    ("kafka.cluster", "ClusterMetadata.refresh_metadata", ("node_id",)),
    ("kafka.protocol.consumer", "OffsetSpec.EARLIEST", None),
    ("kafka.protocol.consumer", "OffsetSpec.LATEST", None),
    ("kafka.protocol.consumer", "OffsetSpec.MAX_TIMESTAMP", None),
    ("kafka.producer.sender", "Sender.force_close", ()),
    ("kafka.producer.sender", "Sender.join", ("timeout",)),
]
#: Private names in a module's source that no class shows.
MENTIONED = [
    ("kafka.producer.kafka", "self._sender = "),
    ("kafka.producer.kafka", "self._metadata = "),
    ("kafka.consumer.group", "self._fetcher = "),
    ("kafka.consumer.fetcher", "self.PartitionRecords("),
    ("kafka.cluster", "self._topics = "),
    ("kafka.cluster", "self._manager = "),
    ("kafka.cluster", "self._coordinators = {}"),
    ("kafka.admin.client", "self._manager = "),
    ("kafka.net.connection", "self.broker_version_data = "),
    ("kafka.net.transport", "wrap_socket("),
]


def changed(what: str) -> str:
    return f"kafka-python {version('kafka-python')} changed {what}: see trionode_kafka/client/kafka_internals.py"


@pytest.mark.parametrize(("module", "name", "parameters"), USED, ids=lambda each: each if isinstance(each, str) else "")
def test_private_name_is_as_expected(module: str, name: str, parameters: tuple[str, ...] | None) -> None:
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise AssertionError(changed(f"{module}.{name} ({error})")) from None
    if parameters is not None:
        assert set(parameters) <= inspect.signature(found).parameters.keys(), changed(
            f"the parameters of {module}.{name}"
        )


@pytest.mark.parametrize(("module", "text"), MENTIONED)
def test_private_attribute_exists(module: str, text: str) -> None:
    assert text in inspect.getsource(import_module(module)), changed(f"{text!r} in {module}")


@pytest.mark.parametrize("name", ["KafkaAdminClient", "KafkaConsumer", "KafkaProducer"])
def test_clients_take_our_network(name: str) -> None:
    config = getattr(import_module("kafka"), name).DEFAULT_CONFIG
    for key in ("kafka_client", "proxy_url", "ssl_context"):
        assert key in config, changed(f"the setting {key} of {name}")


def test_loggers_that_would_show_a_password_are_filtered() -> None:
    for name in ("admin.client", "net.connection", "protocol.parser"):
        assert "getLogger(__name__)" in inspect.getsource(import_module(f"kafka.{name}")), changed(f"the logger {name}")


def test_only_versions_with_these_names_are_allowed() -> None:
    (requirement,) = [each for each in requires("trionode") or () if re.match(r"kafka-python\b.*extra == .kafka", each)]
    assert "<3.1" in requirement
