"""What is found in topologies, and whether what they assert holds."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.topology.stages import STAGES
from trionode.cli import main
from trionode.topology.findings import Finding
from trionode.topology.problems import SpecError, keys_of
from trionode.topology.reading import parse_topology
from trionode.topology.telling import as_json, tell
from trionode.topology.verify import Report, verify

GOOD = """
[nodes.hub]
listen = ["tcp:127.0.0.1:4000"]
[nodes.hub.relay_service]
allow = "channels"
[nodes.hub.secure_channel_listeners.door]
trust = { nodes = ["bob"] }
[nodes.bob]
workers.echoer = "echoer"
secure_channels.hub = { to = ["tcp:127.0.0.1:4000", "door"], trust = { nodes = ["hub"] } }
relays.bob = { via = ["@hub"] }
[nodes.bob.secure_channel_listeners.api]
trust = { nodes = ["alice"] }
[nodes.alice.secure_channels.bob]
to = ["tcp:127.0.0.1:4000", "forward_to_bob", "api"]
trust = { nodes = ["bob"] }
[flows.hello]
from = "alice"
to = ["@bob", "echoer"]
[[assert]]
no_plaintext_at = ["hub", "network", "stores"]
no_inner_addresses_at = ["hub", "network"]
no_injection_by = ["hub", "network"]
proven_to = "bob"
not_reached_by_strangers = "bob/echoer"
no_dials_by_strangers = ["hub", "bob"]
"""


def report(text: str) -> Report:
    return verify(parse_topology(text, only=()))


def found(text: str, kind: str) -> list[Finding]:
    return [finding for finding in report(text).findings if finding.kind == kind]


def test_nothing_is_found_in_a_good_topology_and_what_it_asserts_holds() -> None:
    good = report(GOOD)
    assert good.holds
    assert good.findings == ()
    assert good.flow("hello").path.returns


@pytest.mark.parametrize(
    ("change", "instead", "asserted", "text"),
    [
        ('"@bob", "echoer"]', '"@bob", "nobody"]', {"flow": "hello", "proven_to": "bob"}, "hello does not arrive"),
        (
            'trust = { nodes = ["bob"] }\n[flows',
            'trust = "everyone"\n[flows',
            {"no_plaintext_at": "hub"},
            "hub can take the place",
        ),
        (
            'trust = { nodes = ["bob"] }\n[flows',
            'trust = "everyone"\n[flows',
            {"no_inner_addresses_at": "network"},
            "can take the place",
        ),
        (
            'echoer = "echoer"',
            'echoer = { run = "echoer", allow = "anyone" }',
            {"no_injection_by": "hub"},
            "arrive as a stranger",
        ),
        (
            'echoer = "echoer"',
            'echoer = { run = "echoer", allow = "anyone" }',
            {"not_reached_by_strangers": "bob/echoer"},
            "a stranger reaches bob/echoer by a bare link",
        ),
        (
            '["@bob", "echoer"]',
            '["tcp:127.0.0.1:4000", "forward_to_bob", "echoer"]',
            {"no_plaintext_at": "hub"},
            "hub sees the payload of hello in the clear",
        ),
        (
            '["@bob", "echoer"]',
            '["tcp:127.0.0.1:4000", "forward_to_bob", "echoer"]',
            {"no_inner_addresses_at": "network"},
            "the network between alice and hub (tcp) learns that hello is for echoer",
        ),
        (
            "[flows",
            '[nodes.bob.outlets.web]\ntarget = "127.0.0.1:80"\nallow = "anyone"\n[flows',
            {"no_dials_by_strangers": "bob"},
            "a stranger can make bob connect to 127.0.0.1:80, by outlets.web",
        ),
    ],
)
def test_a_violated_assertion_says_the_way_that_violates_it(
    change: str, instead: str, asserted: dict[str, str], text: str
) -> None:
    report(GOOD).require(**asserted)
    changed = GOOD.replace(change, instead)
    assert changed != GOOD
    with pytest.raises(AssertionError, match="it does not hold") as raised:
        report(changed).require(**asserted)
    assert text in str(raised.value)
    assert str(raised.value).count("\n    ") > 1, "hop by hop"
    lines = [f'{key} = "{value}"' for key, value in asserted.items()]
    assert not report(changed + "\n[[assert]]\n" + "\n".join(lines)).verdicts[-1].holds, "as in the file"


def test_what_is_required_of_nobody_is_a_mistake() -> None:
    with pytest.raises(SpecError, match='there is no node "hubb"; did you mean "hub"'):
        report(GOOD).require(no_plaintext_at="hubb")
    with pytest.raises(SpecError, match="it asserts nothing"):
        report(GOOD).require()


def test_a_sender_is_proven_only_to_those_who_have_a_channel_with_him() -> None:
    with pytest.raises(AssertionError, match="nothing proves to hub that hello comes from alice"):
        report(GOOD).require(proven_to="hub")
    with pytest.raises(AssertionError, match="no flow comes to stranger"):
        report(GOOD + "\n[nodes.stranger]").require(proven_to="stranger")


CASES: list[tuple[str, str, str, str]] = [
    (
        "loop",
        "error",
        "flows.hello",
        GOOD.replace('echoer = "echoer"', 'echoer = { run = "echoer", sends = [["echoer"]] }'),
    ),
    ("no way there", "error", "flows.hello", GOOD.replace('"@bob", "echoer"', '"@bob", "echo"')),
    ("unopened", "error", "nodes.alice.secure_channels.bob", GOOD.replace('nodes = ["alice"]', 'nodes = ["hub"]')),
    ("unknown place", "warning", "nodes.alice.links.x", GOOD + '\n[nodes.alice.links.x]\nto = "tcp:elsewhere:4000"'),
    (
        "ambiguous place",
        "warning",
        "nodes.alice.links.x",
        GOOD
        + '\n[nodes.alice.links.x]\nto = "tcp:one.example:5"\n[nodes.one]\nlisten="tcp:0.0.0.0:5"\n[nodes.two]\nlisten="tcp:0.0.0.0:5"',
    ),
    (
        "plaintext",
        "warning",
        "flows.hello",
        GOOD.replace('echoer = "echoer"', 'echoer = { run = "echoer", allow = "anyone" }').replace(
            '["@bob", "echoer"]', '["tcp:127.0.0.1:4000", "forward_to_bob", "echoer"]'
        ),
    ),
    (
        "reached without a channel",
        "warning",
        "nodes.bob.workers.echoer.allow",
        GOOD.replace('echoer = "echoer"', 'echoer = { run = "echoer", allow = "anyone" }'),
    ),
    (
        "trust in everyone",
        "warning",
        "nodes.bob.secure_channel_listeners.api.trust",
        GOOD.replace('{ nodes = ["alice"] }', '"everyone"'),
    ),
    (
        "trust in everyone",
        "warning",
        "nodes.alice.secure_channels.bob.trust",
        GOOD.replace('{ nodes = ["bob"] }\n[flows', '"everyone"\n[flows'),
    ),
    ("open listener", "note", "nodes.hub.listen[0].at", GOOD.replace("127.0.0.1", "hub.example")),
    (
        "dial by strangers",
        "warning",
        "nodes.bob.inlets.in",
        GOOD + '\n[nodes.bob.inlets.in]\nat = "0.0.0.0:80"\nto = ["@hub", "out"]',
    ),
    (
        "dial by strangers",
        "warning",
        "nodes.hub.links.x",
        GOOD.replace('listen = ["tcp', 'forwards = true\nlisten = ["tcp')
        + '\n[nodes.hub.links.x]\nto = "tcp:127.0.0.1:5"\ndial = "on_demand"\n[nodes.x]\nlisten = "tcp:127.0.0.1:5"',
    ),
    (
        "strangers carried on",
        "note",
        "nodes.bob.relays.bob.to",
        GOOD.replace('via = ["@hub"]', 'via = ["@hub"], to = ["tcp:127.0.0.1:4000"]'),
    ),
    (
        "open service",
        "warning",
        "nodes.hub.relay_service.allow",
        GOOD.replace('allow = "channels"', 'allow = "anyone"'),
    ),
    (
        "open service",
        "note",
        "nodes.hub.relay_service.allow",
        GOOD.replace('{ nodes = ["bob"] }\n[nodes.bob]', '"everyone"\n[nodes.bob]'),
    ),
    (
        "trunk",
        "note",
        "nodes.alice.links.x.trunk",
        GOOD + '\n[nodes.alice.links.x]\nto = "tcp:127.0.0.1:4000"\ntrunk = true',
    ),
    (
        "ring",
        "warning",
        "nodes.a.links.b.trunk",
        """
[nodes.a]
listen = "tcp:127.0.0.1:1"
forwards = true
links.b = { to = "tcp:127.0.0.1:2" }
[nodes.b]
listen = "tcp:127.0.0.1:2"
forwards = true
links.c = { to = "tcp:127.0.0.1:3" }
[nodes.c]
listen = "tcp:127.0.0.1:3"
forwards = true
links.a = { to = "tcp:127.0.0.1:1" }
""",
    ),
    (
        "no way back",
        "error",
        "flows.hello",
        """
[nodes.hub]
listen = "tcp:127.0.0.1:1"
stream_services.hub = { store = "memory" }
[nodes.bob]
workers.open = { run = "echoer", allow = "anyone" }
streams.a = { via = ["tcp:127.0.0.1:1"], service = "hub", index_service = "hub_index", sends = "lost", receives = "there" }
[nodes.alice]
streams.b = { via = ["tcp:127.0.0.1:1"], service = "hub", index_service = "hub_index", sends = "there", receives = "back" }
[flows.hello]
from = "alice"
to = ["@b", "open"]
""",
    ),
    (
        "claimed twice",
        "warning",
        "nodes.b.streams.s.client_id",
        """
[nodes.hub]
listen = "tcp:127.0.0.1:1"
stream_services.hub = { store = "memory" }
[nodes.a]
streams.s = { via = ["tcp:127.0.0.1:1"], service = "hub", index_service = "hub_index", sends = "x", receives = "y", client_id = "me" }
[nodes.b]
streams.s = { via = ["tcp:127.0.0.1:1"], service = "hub", index_service = "hub_index", sends = "z", receives = "y", client_id = "me" }
""",
    ),
]


CASES.append(
    (
        "claimed twice",
        "warning",
        "nodes.hub.stream_services.hub.owners",
        """
[nodes.hub]
listen = "tcp:127.0.0.1:1"
stream_services.hub = { store = "memory" }
secure_channel_listeners.door = { trust = { nodes = ["a"] } }
[nodes.a]
secure_channels.hub = { to = ["tcp:127.0.0.1:1", "door"], trust = { nodes = ["hub"] } }
streams.s = { via = ["@hub"], service = "hub", index_service = "hub_index", sends = "x", receives = "y" }
[nodes.b]
streams.s = { via = ["tcp:127.0.0.1:1"], service = "hub", index_service = "hub_index", sends = "y", receives = "x" }
""",
    )
)


@pytest.mark.parametrize(
    ("kind", "severity", "where", "text"), CASES, ids=[f"{each[0]} at {each[2]}" for each in CASES]
)
def test_what_is_dubious_is_found_where_it_is_said(kind: str, severity: str, where: str, text: str) -> None:
    findings = found(text, kind)
    assert (severity, where) in [(finding.severity, keys_of(finding.where)) for finding in findings]
    for finding in findings:
        assert finding.text
        assert finding.advice
        assert not finding.advice.endswith(".")


def test_two_relays_of_one_name_at_one_hub_are_told_of() -> None:
    text = GOOD + '\n[nodes.mallory.relays.bob]\nvia = ["tcp:127.0.0.1:4000"]'
    findings = found(text.replace('allow = "channels"', 'allow = "anyone"'), "unopened")
    assert "the relay can't be opened: the relay bob at hub belongs to another already" in [
        each.text for each in findings
    ]


def test_strangers_are_followed_through_relays_links_streams_and_open_channels() -> None:
    text = """
[nodes.one]
listen = "tcp:127.0.0.1:1"
forwards = true
links.two = { to = "tcp:127.0.0.1:2" }
[nodes.two]
listen = "tcp:127.0.0.1:2"
stream_services.hub = { store = "memory" }
secure_channel_listeners.door = { trust = "everyone" }
workers.inner = "echoer"
[nodes.three]
workers.open = { run = "echoer", allow = "anyone" }
streams.s = { via = ["tcp:127.0.0.1:2"], service = "hub", index_service = "hub_index", sends = "x", receives = "y" }
"""
    strangers = report(text).proof.strangers
    inner = strangers.reach("two", "inner", bare=False)
    assert inner is not None
    assert inner.manner == "through a secure channel"
    assert strangers.reach("two", "inner", bare=True) is None
    reached = strangers.reach("three", "open", bare=True)
    assert reached is not None
    assert reached.manner == "by a bare stream"
    assert reached.way[-3:] == (
        "writes the stream y at two/hub",
        "is read by three",
        "addresses three/open",
    )


def test_without_flows_each_channel_is_followed_to_each_worker_that_it_reaches_and_each_inlet_to_its_outlet() -> None:
    text = (
        GOOD[: GOOD.index("[flows")]
        + """
[nodes.bob.outlets.web]
target = "10.0.0.1:80"
[nodes.alice.inlets.web]
at = "127.0.0.1:8080"
to = ["@bob", "web"]
"""
    )
    flows = {flow.name: flow for flow in report(text).flows}
    assert set(flows) == {"inlet alice/web", "alice → bob/echoer by @bob"}
    assert flows["inlet alice/web"].path.receiver == ("bob", "web")
    assert [
        each.at.name for each in flows["inlet alice/web"].path.there.passed if each.seen.payload == "plaintext"
    ] == [
        "alice",
        "bob",
        "bob → 10.0.0.1:80",
        "10.0.0.1:80",
    ], "the outlet's target is reached in the clear"


# The command


def check(tmp_path: Path, text: str, *options: str) -> tuple[int, str]:
    file = tmp_path / "topology.toml"
    file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["check", str(file), *options])
    return result.exit_code, result.output


def test_check_prints_the_table_and_the_assertions(tmp_path: Path) -> None:
    code, output = check(tmp_path, GOOD)
    assert code == 0
    assert output.splitlines()[:9] == [
        "hello: alice => @bob => echoer",
        "  arrives at bob/echoer, as proven by alice; answers come back",
        "  hop                  sees        may   addresses in the clear",
        "  alice                plaintext   -     echoer",
        "    alice → hub (tcp)  ciphertext  drop  -",
        "  hub                  ciphertext  drop  -",
        "    bob → hub (tcp)    ciphertext  drop  -",
        "  bob                  plaintext   -     echoer",
        "",
    ]
    assert output.splitlines()[-1].startswith("✓ assert[0]: no_plaintext_at hub, network, stores; ")


def test_check_fails_where_an_assertion_does_not_hold_or_a_file_is_broken_and_if_it_is_strict_where_something_is_dubious(
    tmp_path: Path,
) -> None:
    dubious = GOOD.replace('{ nodes = ["alice"] }', '"everyone"').replace('no_injection_by = ["hub", "network"]\n', "")
    assert check(tmp_path, dubious)[0] == 0
    assert check(tmp_path, dubious, "--strict")[0] == 1
    assert check(tmp_path, GOOD, "--strict")[0] == 0
    violated = GOOD.replace('{ nodes = ["bob"] }\n[flows', '"everyone"\n[flows')
    code, output = check(tmp_path, violated)
    assert code == 1
    assert "✗ assert[0]" in output
    code, output = check(tmp_path, "[nodes.a]\nlisten = 4000")
    assert code == 1
    assert "nodes.a.listen" in output


def test_check_prints_json_and_the_schema(tmp_path: Path) -> None:
    code, output = check(tmp_path, GOOD, "--json")
    assert code == 0
    told = json.loads(output)
    assert told["flows"][0]["receiver"] == "bob/echoer"
    assert told["assertions"][0]["holds"] is True
    schema = CliRunner().invoke(main, ["check", "--schema"])
    assert json.loads(schema.output)["title"] == "A topology of trionode"
    assert CliRunner().invoke(main, ["check"]).exit_code == 2


@pytest.mark.parametrize("stage", STAGES)
def test_every_report_can_be_told(stage: str) -> None:
    told = report(STAGES[stage])
    assert list(tell(told))
    assert json.dumps(as_json(told))
