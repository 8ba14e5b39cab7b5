"""Topologies that together contain every feature, for mutations, pictures and reports."""

HUB = """
[nodes.hub]
listen = ["tcp:127.0.0.1:4000"]
[nodes.hub.stream_services.sv-hub]
store = "memory"
[nodes.hub.relay_service]
[nodes.hub.workers]
wk-hub = { run = "tests.support.harness:noting_worker", arguments = { node = "hub", name = "wk-hub" }, allow = "anyone" }

[nodes.bob.workers]
wk-bob = { run = "tests.support.harness:noting_worker", arguments = { node = "bob", name = "wk-bob" } }
wk-open = { run = "tests.support.harness:noting_worker", arguments = { node = "bob", name = "wk-open" }, allow = "anyone" }
[nodes.bob.secure_channel_listeners.ls-bob]
trust = { nodes = ["alice"] }
[nodes.bob.relays.rl-bob]
via = ["tcp:127.0.0.1:4000"]
[nodes.bob.streams.alice]
via = ["tcp:127.0.0.1:4000"]
service = "sv-hub"
index_service = "sv-hub_index"
sends = "st-back"
receives = "st-there"

[nodes.alice.streams.bob]
via = ["tcp:127.0.0.1:4000"]
service = "sv-hub"
index_service = "sv-hub_index"
sends = "st-there"
receives = "st-back"
[nodes.alice.secure_channels]
relayed = { to = ["tcp:127.0.0.1:4000", "forward_to_rl-bob", "ls-bob"], trust = { nodes = ["bob"] } }
streamed = { to = ["@bob", "ls-bob"], trust = { nodes = ["bob"] } }

[nodes.mallory.secure_channels]
bob = { to = ["tcp:127.0.0.1:4000", "forward_to_rl-bob", "ls-bob"], trust = "everyone" }

[flows.relayed]
from = "alice"
to = ["@relayed", "wk-bob"]
[flows.streamed]
from = "alice"
to = ["@streamed", "wk-bob"]
[flows.open]
from = "alice"
to = ["@relayed", "wk-open"]
[flows.bare]
from = "alice"
to = ["@bob", "wk-open"]
[flows.refused]
from = "alice"
to = ["@bob", "wk-bob"]
[flows.unauthenticated]
from = "mallory"
to = ["tcp:127.0.0.1:4000", "forward_to_rl-bob", "wk-bob"]
[flows.guest]
from = "mallory"
to = ["tcp:127.0.0.1:4000", "wk-hub"]
"""

CHAIN = """
[nodes.alice.secure_channels]
first = { to = ["tls:127.0.0.1:4001", "ls-one"], trust = { nodes = ["one"] } }
inner = { to = ["tls:127.0.0.1:4001", "lk-two", "lk-bob", "ls-bob"], trust = { nodes = ["bob"] } }
nested = { to = ["@first", "ls-deep"], trust = { nodes = ["one"] } }

[nodes.one]
listen = ["tls:127.0.0.1:4001"]
forwards = true
[nodes.one.links.lk-two]
to = "ws:127.0.0.1:4002/two"
[nodes.one.secure_channel_listeners.ls-one]
trust = { nodes = ["alice"] }
[nodes.one.secure_channel_listeners.ls-deep]
trust = { nodes = ["alice"] }
allow = "channels"
[nodes.one.workers]
wk-one = { run = "tests.support.harness:noting_worker", arguments = { node = "one", name = "wk-one" } }
wk-on = { run = "tests.support.harness:noting_worker", arguments = { node = "one", name = "wk-on" }, sends = [["lk-two", "lk-bob", "wk-any"]] }

[nodes.two]
listen = ["ws:127.0.0.1:4002/two"]
forwards = true
[nodes.two.links.lk-bob]
to = "kafka:127.0.0.1:9092/bob"

[nodes.shut]
listen = ["tcp:127.0.0.1:4003"]
[nodes.shut.links.lk-shut]
to = "kafka:127.0.0.1:9092/bob"

[nodes.bob]
listen = ["kafka:127.0.0.1:9092/bob"]
[nodes.bob.workers]
wk-bob = { run = "tests.support.harness:noting_worker", arguments = { node = "bob", name = "wk-bob" } }
wk-any = { run = "tests.support.harness:noting_worker", arguments = { node = "bob", name = "wk-any" }, allow = "anyone" }
wk-named = { run = "tests.support.harness:noting_worker", arguments = { node = "bob", name = "wk-named" }, allow = { nodes = ["carol"] } }
[nodes.bob.secure_channel_listeners.ls-bob]
trust = { nodes = ["alice"] }

[nodes.carol.secure_channels]
bob = { to = ["kafka:127.0.0.1:9092/bob", "ls-bob"], trust = "everyone" }

[flows.inner]
from = "alice"
to = ["@inner", "wk-bob"]
[flows.any]
from = "alice"
to = ["@inner", "wk-any"]
[flows.nested]
from = "alice"
to = ["@nested", "wk-one"]
[flows.on]
from = "alice"
to = ["@first", "wk-on"]
[flows.out]
from = "alice"
to = ["@first", "lk-two", "lk-bob", "wk-any"]
[flows.along]
from = "alice"
to = ["tls:127.0.0.1:4001", "lk-two", "lk-bob", "wk-any"]
[flows.named]
from = "alice"
to = ["@inner", "wk-named"]
[flows.shut]
from = "alice"
to = ["tcp:127.0.0.1:4003", "lk-shut", "wk-any"]
"""

TENANTS = """
[nodes.hub]
listen = ["tcp:127.0.0.1:4000"]
[nodes.hub.secure_channel_listeners.ls-hub]
trust = { nodes = ["alice", "bob", "carol"] }
[nodes.hub.stream_services.sv-hub]
store = "memory"
allow = "channels"
[nodes.hub.stream_services.sv-hub.owners]
[nodes.hub.relay_service]
allow = "channels"

[nodes.alice.secure_channels]
hub = { to = ["tcp:127.0.0.1:4000", "ls-hub"], trust = { nodes = ["hub"] } }
bob = { to = ["@hub", "forward_to_rl-bob", "ls-bob"], trust = { nodes = ["bob"] } }
[nodes.alice.streams.own]
via = ["@hub"]
service = "sv-hub"
index_service = "sv-hub_index"
sends = "st-alice"
receives = "st-alice"
[nodes.alice.workers]
wk-self = { run = "tests.support.harness:noting_worker", arguments = { node = "alice", name = "wk-self" }, allow = "anyone" }

[nodes.bob.secure_channels]
hub = { to = ["tcp:127.0.0.1:4000", "ls-hub"], trust = { nodes = ["hub"] } }
[nodes.bob.relays.rl-bob]
via = ["@hub"]
[nodes.bob.workers]
wk-bob = { run = "tests.support.harness:noting_worker", arguments = { node = "bob", name = "wk-bob" } }
[nodes.bob.secure_channel_listeners.ls-bob]
trust = { nodes = ["alice"] }

[nodes.carol.secure_channels]
hub = { to = ["tcp:127.0.0.1:4000", "ls-hub"], trust = { nodes = ["hub"] } }
[nodes.carol.streams.theft]
via = ["@hub"]
service = "sv-hub"
index_service = "sv-hub_index"
sends = "st-carol"
receives = "st-alice"

[flows.bob]
from = "alice"
to = ["@bob", "wk-bob"]
[flows.own]
from = "alice"
to = ["@own", "wk-self"]
[flows.knock]
from = "carol"
to = ["@hub", "forward_to_rl-bob", "wk-bob"]
"""

#: The hub of the streams accepts no connections: a relay leads to it.
HIDDEN_HUB = """
[nodes.gate]
listen = ["tcp:127.0.0.1:4000"]
[nodes.gate.relay_service]

[nodes.hub.relays.rl-hub]
via = ["tcp:127.0.0.1:4000"]
[nodes.hub.stream_services.sv-hub]
store = "memory"

[nodes.bob.workers]
wk-open = { run = "tests.support.harness:noting_worker", arguments = { node = "bob", name = "wk-open" }, allow = "anyone" }
wk-bob = { run = "tests.support.harness:noting_worker", arguments = { node = "bob", name = "wk-bob" } }
[nodes.bob.secure_channel_listeners.ls-bob]
trust = { nodes = ["alice"] }
[nodes.bob.streams.alice]
via = ["tcp:127.0.0.1:4000", "forward_to_rl-hub"]
service = "sv-hub"
index_service = "sv-hub_index"
sends = "st-back"
receives = "st-there"

[nodes.alice.streams.bob]
via = ["tcp:127.0.0.1:4000", "forward_to_rl-hub"]
service = "sv-hub"
index_service = "sv-hub_index"
sends = "st-there"
receives = "st-back"
[nodes.alice.secure_channels]
streamed = { to = ["@bob", "ls-bob"], trust = { nodes = ["bob"] } }

[flows.bare]
from = "alice"
to = ["@bob", "wk-open"]
[flows.streamed]
from = "alice"
to = ["@streamed", "wk-bob"]
"""

STAGES = {"hub": HUB, "chain": CHAIN, "tenants": TENANTS, "hidden hub": HIDDEN_HUB}
