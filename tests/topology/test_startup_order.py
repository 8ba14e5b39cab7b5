from trionode.topology import parse_topology
from trionode.topology.run.startup_order import Part, dependencies

TOPOLOGY = """
[nodes.hub]
listen = "loopback:hub"
relay_service = {}
links.next.to = "loopback:other"
[nodes.other]
listen = "loopback:other"
relay_service.prefix = "to_"
[nodes.bob]
relays.bob.via = ["@other"]
secure_channels.other = { to = ["loopback:hub", "next", "api"], trust = "everyone" }
streams.s = { via = ["loopback:hub"], sends = "back", receives = "there" }
[nodes.alice]
streams.s = { via = ["loopback:hub"], sends = "there", receives = "back" }
inlets.web = { listen = "127.0.0.1:0", to = ["@outer", "web"] }
[nodes.alice.secure_channels]
inner = { to = ["@outer", "api"], trust = "everyone" }
outer = { to = ["@s", "api"], trust = "everyone" }
relayed = { to = ["loopback:other", "to_bob", "api"], trust = "everyone" }
far = { to = ["next", "api"], trust = "everyone" }
"""


def dependencies_by_name(text: str, *nodes: str) -> dict[str, set[str]]:
    spec = parse_topology(text)
    found = dependencies(spec, nodes or spec.nodes.keys())
    return {
        str(part).removeprefix("nodes."): {str(each).removeprefix("nodes.") for each in of}
        for part, of in found.items()
    }


def test_route_depends_on_what_it_leads_through() -> None:
    assert dependencies_by_name(TOPOLOGY) == {
        "bob.relays.bob": {"bob.secure_channels.other"},
        "bob.secure_channels.other": {"hub.links.next"},
        "bob.streams.s": set(),
        "alice.streams.s": set(),
        "alice.inlets.web": {"alice.secure_channels.outer"},
        "alice.secure_channels.inner": {"alice.secure_channels.outer"},
        "alice.secure_channels.outer": {"alice.streams.s", "bob.streams.s"},
        "alice.secure_channels.relayed": {"bob.relays.bob"},
        "alice.secure_channels.far": set(),  # the first hop names a link of the node itself, which has none
    }


def test_nodes_elsewhere_are_no_dependencies() -> None:
    assert dependencies_by_name(TOPOLOGY, "alice")["alice.secure_channels.outer"] == {"alice.streams.s"}
    assert dependencies_by_name(TOPOLOGY, "alice")["alice.secure_channels.relayed"] == set()


def test_dependencies_have_no_cycle() -> None:
    text = """
        [nodes.hub]
        listen = "loopback:hub"
        relay_service = {}
        [nodes.bob]
        relays.bob.via = ["@alice"]
        secure_channels.alice = { to = ["loopback:hub", "forward_to_alice", "api"], trust = "everyone" }
        [nodes.alice]
        relays.alice.via = ["@bob"]
        secure_channels.bob = { to = ["loopback:hub", "forward_to_bob", "api"], trust = "everyone" }
    """
    spec = parse_topology(text)
    found = dependencies(spec, spec.nodes)
    done: set[Part] = set()
    while len(done) < len(found):
        ready = {part for part, of in found.items() if of <= done} - done
        assert ready, "a cycle"
        done |= ready
    assert found[Part("bob", "relays", "bob")] == {Part("bob", "secure_channels", "alice")}
