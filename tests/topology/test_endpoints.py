from collections.abc import Mapping

import pytest

from trionode.net.endpoint import Exposure
from trionode.net.transport import Transport, transport_class
from trionode.stream.store.base import store_info
from trionode.topology.endpoints import parse_endpoint, store_endpoint

BROKERS_AND_NETWORK = Exposure.BROKERS | Exposure.NETWORK


@pytest.mark.parametrize(
    ("text", "options", "exposure"),
    [
        ("tcp:a.example:1", {}, Exposure.NETWORK),
        ("tcp_classic:a.example:1", {}, Exposure.NETWORK),
        ("tls:a.example:1", {}, Exposure.ENCRYPTED),
        ("ws:a.example:1/x", {}, Exposure.NETWORK),
        ("wss:a.example:1/x", {}, Exposure.ENCRYPTED),
        ("loopback:a", {}, Exposure.NONE),
        ("kafka:a.example:1/x", {}, BROKERS_AND_NETWORK),
        ("kafka:a.example:1/x", {"security": "sasl_plaintext"}, BROKERS_AND_NETWORK),
        ("kafka:a.example:1/x", {"security": "sasl_ssl"}, Exposure.BROKERS),
        ("not_installed:a", {}, Exposure.NETWORK),
    ],
)
def test_exposure_of_transports(text: str, options: Mapping[str, object], exposure: Exposure) -> None:
    endpoint = parse_endpoint(text, options)
    assert endpoint is not None
    assert endpoint.exposure == exposure


@pytest.mark.parametrize(
    ("at", "options", "exposure"),
    [
        ("memory", {}, Exposure.NONE),
        ("sqlite:streams.db", {}, Exposure.NONE),
        ("kafka:a.example:1", {}, BROKERS_AND_NETWORK),
        ("kafka:a.example:1", {"security": "ssl"}, Exposure.BROKERS),
        ("not_installed:a", {}, Exposure.NETWORK),
    ],
)
def test_exposure_of_stores(at: str, options: Mapping[str, object], exposure: Exposure) -> None:
    assert store_endpoint(at, options).exposure == exposure


def test_only_transports_with_tls_take_certificates() -> None:
    names = ("tcp", "tcp_classic", "tls", "ws", "wss", "loopback", "kafka")
    assert {name for name in names if transport_class(name).takes_certificates} == {"tls", "wss"}


def test_local_addresses_of_transports() -> None:
    assert transport_class("ws").local_address("a.example:80/x", lambda: 4711) == "127.0.0.1:4711"
    assert transport_class("loopback").local_address("a.example:80", lambda: 4711) == "a.example:80"
    assert transport_class("kafka").local_address("a.example:80", lambda: 4711) is None


def test_transport_that_is_not_installed_has_safe_defaults() -> None:
    kind = transport_class("not_installed")
    assert kind is Transport
    assert kind.parse_address("any:thing at all").host == ""
    assert kind.parse_address("a.example:1/x").host == "a.example"
    store_info("not_installed").check_address("anything")
