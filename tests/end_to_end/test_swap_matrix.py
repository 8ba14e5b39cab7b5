"""One conversation from one spec over every transport and store, in both protocol versions."""

import secrets
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import pytest
import trio

from tests.support.certificates import Authority
from trionode.testing import KafkaBroker
from trionode.topology import (
    ChannelListenerSpec,
    ChannelSpec,
    NodeSpec,
    StreamServiceSpec,
    StreamSpec,
    TopologySpec,
    run_topology,
    swap,
)
from trionode.topology.spec import Option, ProtocolVersionName

TRANSPORTS = ("loopback", "tcp", "tcp_classic", "tls", "ws", "wss", "kafka")
STORES = ("memory", "sqlite", "kafka")
PROTOCOL_VERSIONS: tuple[ProtocolVersionName, ...] = ("current", "classic")

TEXTS = ("Hello, Bob!", "", "Привет, 你好 ✨", "long " * 10_000)
#: Seconds for one conversation; over Kafka, and stored in it, each hop takes some milliseconds.
LIMIT = 30.0


def conversation(options: Mapping[str, Mapping[str, Option]], protocol_version: ProtocolVersionName) -> TopologySpec:
    """Alice's channel to Bob through two streams of a hub that listens in memory, until it is swapped."""
    hub = ["loopback:hub"]
    to_bob, to_alice = f"alice_to_bob_{secrets.token_hex(16)}", f"bob_to_alice_{secrets.token_hex(16)}"
    return TopologySpec(
        nodes={
            "hub": NodeSpec(
                listen=hub, transports=options, stream_services={"stream_kafka": StreamServiceSpec(store="memory")}
            ),
            "bob": NodeSpec(
                transports=options,
                workers={"echoer": "echoer"},
                secure_channel_listeners={
                    "listener": ChannelListenerSpec(trust="everyone", protocol_versions=[protocol_version])
                },
                streams={
                    "alice": StreamSpec(via=hub, sends=to_alice, receives=to_bob, protocol_version=protocol_version)
                },
            ),
            "alice": NodeSpec(
                transports=options,
                streams={
                    "hub": StreamSpec(via=hub, sends=to_bob, receives=to_alice, protocol_version=protocol_version)
                },
                secure_channels={
                    "bob": ChannelSpec(to=["@hub", "listener"], trust="everyone", protocol_version=protocol_version)
                },
            ),
        }
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Option]:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    signed = authority.sign()
    return {"certificate": signed.certificate, "key": signed.key, "ca_file": authority.path}


@pytest.fixture
def parse_endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return the address of a transport or a store of that name, for `swap`."""

    def parse_endpoint(name: str) -> str:
        if name == "kafka":
            broker: KafkaBroker = request.getfixturevalue("kafka_broker")
            return f"kafka:{broker.bootstrap}"
        return f"sqlite:{tmp_path / 'streams.db'}" if name == "sqlite" else name

    return parse_endpoint


@pytest.mark.parametrize(
    ("transport", "store", "protocol_version"),
    [
        pytest.param(*each, marks=[pytest.mark.kafka] if "kafka" in each else [])
        for each in product(TRANSPORTS, STORES, PROTOCOL_VERSIONS)
    ],
)
async def test_alice_and_bob_talk_over_every_transport_and_store(
    transport: str,
    store: str,
    protocol_version: ProtocolVersionName,
    certificates: Mapping[str, Option],
    parse_endpoint: Callable[[str], str],
    record_property: Callable[[str, object], None],
) -> None:
    record_property("swap", (transport, f"{store} {protocol_version}"))
    endpoint = f"{parse_endpoint(transport)}/hub_{{}}" if transport == "kafka" else transport
    options = {transport: certificates} if transport in {"tls", "wss"} else {}
    spec = swap(conversation(options, protocol_version), loopback=endpoint, store=parse_endpoint(store))
    with trio.fail_after(LIMIT):
        async with run_topology(spec) as running:
            for text in TEXTS:
                assert (await running["alice"].ask(["@bob", "echoer"], text)).text == text
