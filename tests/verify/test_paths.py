"""The path of a message through a topology, step by step."""

import pytest

from trionode.topology.endpoints import parse_endpoint
from trionode.topology.load.loader import parse_topology
from trionode.verify.model.build import build
from trionode.verify.model.messages import Observer
from trionode.verify.paths import Path, trace_route

HUB = """
[nodes.hub]
listen = ["tcp:127.0.0.1:4000"]
[nodes.hub.relay_service]
[nodes.bob]
workers = { echoer = "echoer", open = { run = "echoer", allow = "anyone" } }
[nodes.bob.secure_channel_listeners.api]
trust = { nodes = ["alice"] }
[nodes.bob.relays.bob]
via = ["tcp:127.0.0.1:4000"]
[nodes.alice.secure_channels.bob]
to = ["tcp:127.0.0.1:4000", "forward_to_bob", "api"]
trust = { nodes = ["bob"] }
"""


def path(text: str, node: str, *route: str) -> Path:
    return trace_route(parse_topology(text, nodes=()), node, route)


def seen(found: Path, name: str, kind: str = "node") -> str:
    observation = next(each for each in found.observations if each.at.kind == kind and each.at.name == name)
    return observation.visible.payload


def test_hub_sees_ciphertext_of_a_channel_and_no_inner_address() -> None:
    found = path(HUB, "alice", "@bob", "echoer")
    assert found.receiver == ("bob", "echoer")
    assert found.returns
    assert found.inner == {"echoer"}
    assert [each.at.name for each in found.request.observations] == [
        "alice",
        "alice → hub (tcp)",
        "hub",
        "bob → hub (tcp)",
        "bob",
    ]
    assert {each.at.name: each.visible.payload for each in found.request.observations} == {
        "alice": "plaintext",
        "alice → hub (tcp)": "ciphertext",
        "hub": "ciphertext",
        "bob → hub (tcp)": "ciphertext",
        "bob": "plaintext",
    }
    hub = found.request.at(Observer("node", "hub"))
    assert hub is not None
    assert (hub.can_drop, hub.can_inject, hub.can_decrypt) == (True, None, False)
    assert "echoer" not in hub.visible.addresses
    bob = found.request.at(Observer("node", "bob"))
    assert bob is not None
    assert bob.authenticated == ("alice",)


def test_hub_sees_and_injects_plaintext_without_a_channel() -> None:
    found = path(HUB, "alice", "tcp:127.0.0.1:4000", "forward_to_bob", "open")
    assert found.returns
    assert seen(found, "hub") == "plaintext"
    hub = found.request.at(Observer("node", "hub"))
    assert hub is not None
    assert hub.can_inject == "as the sender"


def test_hub_injects_unauthenticated_into_a_worker_that_admits_everyone() -> None:
    hub = path(HUB, "alice", "@bob", "open").request.at(Observer("node", "hub"))
    assert hub is not None
    assert hub.can_inject == "unauthenticated"


def test_worker_refuses_a_relayed_message_without_a_channel() -> None:
    found = path(HUB, "alice", "tcp:127.0.0.1:4000", "forward_to_bob", "echoer")
    assert not found.arrives
    assert found.request.trouble == (
        "echoer at bob admits this node and peers with a secure channel; this comes by a bare link"
    )


def test_hop_that_the_channel_trusts_could_read() -> None:
    text = HUB.replace('trust = { nodes = ["bob"] }', 'trust = "everyone"')
    found = path(text, "alice", "@bob", "echoer")
    hub = found.request.at(Observer("node", "hub"))
    connection = found.request.at(Observer("connection", "alice → hub (tcp)"))
    assert hub is not None
    assert connection is not None
    assert hub.can_decrypt
    assert connection.can_decrypt
    assert hub.can_impersonate == ("@bob of alice",)
    assert hub.can_learn == {"echoer"}
    answer = found.reply.at(Observer("node", "hub"))
    assert answer is not None
    assert not answer.can_decrypt, "bob trusts alice alone, so no other node can stand between the two"


def test_refused_channel_is_not_open_and_says_why() -> None:
    network = build(
        parse_topology(HUB.replace('trust = { nodes = ["alice"] }', 'trust = { nodes = ["hub"] }'), nodes=())
    )
    assert network.unopened == {("alice", "secure_channels", "bob"): "the listener bob/api does not trust alice"}
    found = trace_route(network, "alice", ["@bob", "echoer"])
    assert not found.arrives
    assert found.request.trouble == "@bob of alice is not open: the listener bob/api does not trust alice"


CHAIN = """
[nodes.a]
[nodes.b]
listen = "{one}"
forwards = {forwards}
[nodes.b.links.c]
to = "{two}"
[nodes.c]
listen = "{two}"
workers = {{ open = {{ run = "echoer", allow = "anyone" }} }}
"""


def chain(one: str = "tcp:127.0.0.1:4001", two: str = "tcp:127.0.0.1:4002", *, forwards: bool = True) -> Path:
    text = CHAIN.format(one=one, two=two, forwards=str(forwards).lower())
    return path(text, "a", one, "c", "open")


def test_forwarding_node_passes_a_message_and_its_answer() -> None:
    found = chain()
    assert found.returns
    assert seen(found, "b") == "plaintext"


def test_node_that_does_not_forward_drops_a_message() -> None:
    assert chain(forwards=False).request.trouble == "c at b admits this node only; this comes by a bare link"


@pytest.mark.parametrize(
    ("endpoint", "observers"),
    [
        ("tcp:127.0.0.1:4002", {"connection": "plaintext"}),
        ("ws:127.0.0.1:4002/x", {"connection": "plaintext"}),
        ("strange:somewhere", {"connection": "plaintext"}),
        ("tls:127.0.0.1:4002", {"connection": "nothing"}),
        ("wss:127.0.0.1:4002", {"connection": "nothing"}),
        ("loopback:c", {}),
        ("kafka:127.0.0.1:9092/c", {"connection": "plaintext", "store": "plaintext"}),
    ],
)
def test_transport_decides_who_sees_a_connection(endpoint: str, observers: dict[str, str]) -> None:
    text = CHAIN.format(one="loopback:b", two=endpoint, forwards="true")
    found = trace_route(parse_topology(text, nodes=()), "a", ["loopback:b", "c", "open"])
    assert found.arrives
    assert {
        each.at.kind: each.visible.payload for each in found.request.observations if each.at.kind != "node"
    } == observers


@pytest.mark.parametrize(
    ("dialler", "listener", "seen_by_network"),
    [("ssl", "sasl_ssl", "nothing"), ("ssl", "plaintext", "plaintext"), ("plaintext", "ssl", "plaintext")],
)
def test_network_sees_kafka_links_unless_both_ends_encrypt(dialler: str, listener: str, seen_by_network: str) -> None:
    text = f"""
[nodes.a]
transports.kafka = {{ security = "{dialler}" }}
links.b = {{ to = "kafka:127.0.0.1:9092/b" }}
[nodes.b]
listen = "kafka:127.0.0.1:9092/b"
transports.kafka = {{ security = "{listener}" }}
workers.open = {{ run = "echoer", allow = "anyone" }}
"""
    found = path(text, "a", "b", "open")
    assert seen(found, "a → b (kafka)", "connection") == seen_by_network
    assert seen(found, "kafka:127.0.0.1:9092/b", "store") == "plaintext"


def test_network_can_only_drop_on_a_connection_with_tls() -> None:
    connection = chain(two="tls:127.0.0.1:4002").request.at(Observer("connection", "b → c (tls)"))
    assert connection is not None
    assert (connection.can_drop, connection.can_inject) == (True, None)


def test_outsider_sees_a_message_that_leaves_the_topology() -> None:
    found = path('[nodes.a.links.out]\nto = "tcp:example.org:4000"', "a", "out", "echoer")
    assert not found.arrives
    assert seen(found, "tcp:example.org:4000", "outsider") == "plaintext"
    assert found.request.trouble == "it leaves the topology for tcp:example.org:4000"


def test_workers_that_pass_messages_to_each_other_are_a_loop() -> None:
    text = """
[nodes.a]
listen = "loopback:a"
workers.one = { run = "echoer", sends = [["two"]] }
workers.two = { run = "echoer", sends = [["one"]] }
"""
    found = path(text, "a", "one")
    assert [outcome.text for outcome in found.request.outcomes if outcome.what == "loops"] == [
        "the worker one receives again what it has passed on"
    ]


def test_longest_route_between_two_hubs_comes_back() -> None:
    text = """
[nodes.a]
listen = "loopback:a"
forwards = true
links.there = { to = "loopback:b" }
workers.open = { run = "echoer", allow = "anyone" }
[nodes.b]
listen = "loopback:b"
forwards = true
links.back = { to = "loopback:a" }
"""
    assert path(text, "a", *["there", "back"] * 15, "open").returns


def test_channel_in_a_channel_is_encrypted_twice() -> None:
    text = """
[nodes.hub]
listen = "loopback:hub"
relay_service = { allow = "channels" }
secure_channel_listeners.api = { trust = { nodes = ["alice", "bob"] } }
[nodes.bob]
secure_channels.hub = { to = ["loopback:hub", "api"], trust = { nodes = ["hub"] } }
relays.bob = { via = ["@hub"] }
workers.echoer = "echoer"
secure_channel_listeners.api = { trust = { nodes = ["alice"] } }
[nodes.alice]
secure_channels.hub = { to = ["loopback:hub", "api"], trust = { nodes = ["hub"] } }
secure_channels.bob = { to = ["@hub", "forward_to_bob", "api"], trust = { nodes = ["bob"] } }
"""
    found = path(text, "alice", "@bob", "echoer")
    assert found.returns
    assert seen(found, "hub") == "ciphertext"
    hub = found.request.at(Observer("node", "hub"))
    bob = found.request.at(Observer("node", "bob"))
    assert hub is not None
    assert bob is not None
    assert hub.authenticated == ("alice",)
    assert bob.authenticated == ("hub", "alice")


STREAMS = """
[nodes.hub]
listen = "tcp:127.0.0.1:4000"
stream_services.hub = {{ store = "{store}" }}
[nodes.bob]
workers.open = {{ run = "echoer", allow = "anyone" }}
streams.alice = {{ via = ["tcp:127.0.0.1:4000"], service = "hub", index_service = "hub_index", sends = "{back}", receives = "there" }}
[nodes.alice]
streams.bob = {{ via = ["tcp:127.0.0.1:4000"], service = "hub", index_service = "hub_index", sends = "there", receives = "back" }}
"""


def test_store_sees_its_records_and_network_sees_kafka() -> None:
    found = path(STREAMS.format(store="kafka:127.0.0.1:9092", back="back"), "alice", "@bob", "open")
    assert found.returns
    assert seen(found, "kafka:127.0.0.1:9092", "store") == "plaintext"
    assert seen(found, "to store kafka:127.0.0.1:9092", "connection") == "plaintext"
    # The routes in the records too.
    store = next(each for each in found.observations if each.at == Observer("store", "kafka:127.0.0.1:9092"))
    assert {"there", "open"} <= set(store.visible.addresses)


def test_answer_into_a_stream_without_reader_does_not_come_back() -> None:
    found = path(STREAMS.format(store="memory", back="elsewhere"), "alice", "@bob", "open")
    assert found.arrives
    assert not found.returns
    assert found.reply.trouble == "no node reads the stream elsewhere of memory of hub"


HIDDEN_HUB = """
[nodes.gate]
listen = "tcp:127.0.0.1:4000"
relay_service = {}
[nodes.hub]
relays.hub = { via = ["tcp:127.0.0.1:4000"] }
stream_services.hub = { store = "memory" }
[nodes.bob]
workers.open = { run = "echoer", allow = "anyone" }
streams.alice = { via = ["tcp:127.0.0.1:4000", "forward_to_hub"], service = "hub", index_service = "hub_index", sends = "back", receives = "there" }
[nodes.alice]
streams.bob = { via = ["tcp:127.0.0.1:4000", "forward_to_hub"], service = "hub", index_service = "hub_index", sends = "there", receives = "back" }
"""


def test_stream_opens_through_a_relay_which_sees_and_can_inject_its_records() -> None:
    found = path(HIDDEN_HUB, "alice", "@bob", "open")
    assert found.arrives
    assert found.returns
    for node in ("gate", "hub"):
        assert seen(found, node) == "plaintext"
        observation = found.request.at(Observer("node", node))
        assert observation is not None
        assert observation.can_inject == "as the sender"
        assert observation.can_drop


@pytest.mark.parametrize(
    ("listening", "dialled", "takes"),
    [
        ("tcp:0.0.0.0:4000", "tcp:hub.example:4000", True),
        ("tcp:0.0.0.0:4000", "tcp:hub.example:4001", False),
        ("tcp:127.0.0.1:4000", "tcp:localhost:4000", True),
        ("tcp:127.0.0.1:4000", "tcp:hub.example:4000", False),
        ("tcp:hub.example:4000", "tcp:hub.example:4000", True),
        ("tcp:hub.example:4000", "tcp_classic:hub.example:4000", True),
        ("tcp:hub.example:4000", "tls:hub.example:4000", False),
        ("tcp:[::]:4000", "tcp:hub.example:4000", True),
        ("ws:0.0.0.0:4000/a", "ws:hub.example:4000/a", True),
        ("ws:0.0.0.0:4000/a", "ws:hub.example:4000/b", False),
        ("kafka:one:9092/hub", "kafka:one:9092/hub", True),
        ("kafka:one:9092/hub", "kafka:one:9092/other", False),
        ("loopback:hub", "loopback:hub", True),
    ],
)
def test_dialled_address_means_a_listener(listening: str, dialled: str, takes: bool) -> None:
    mine, theirs = parse_endpoint(listening), parse_endpoint(dialled)
    assert mine is not None
    assert theirs is not None
    assert mine.takes(theirs) is takes
