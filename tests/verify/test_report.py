"""The findings of topologies, and whether their assertions hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.stages import STAGES
from trionode.cli import main
from trionode.topology.errors import SpecError, dotted_keys
from trionode.topology.load.loader import parse_topology
from trionode.verify.findings import Finding
from trionode.verify.render import as_json, render
from trionode.verify.report import Report, verify

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
sender_authenticated_to = "bob"
no_unauthenticated_access_to = "bob/echoer"
no_unauthenticated_dials_by = ["hub", "bob"]
"""


def report(text: str) -> Report:
    return verify(parse_topology(text, nodes=()))


def found(text: str, kind: str) -> list[Finding]:
    return [finding for finding in report(text).findings if finding.kind == kind]


def test_good_topology_has_no_findings_and_its_assertions_hold() -> None:
    good = report(GOOD)
    assert good.holds
    assert good.findings == ()
    assert good.flow("hello").path.returns


@pytest.mark.parametrize(
    ("change", "instead", "asserted", "text"),
    [
        (
            '"@bob", "echoer"]',
            '"@bob", "missing"]',
            {"flow": "hello", "sender_authenticated_to": "bob"},
            "hello does not arrive",
        ),
        (
            'trust = { nodes = ["bob"] }\n[flows',
            'trust = "everyone"\n[flows',
            {"no_plaintext_at": "hub"},
            "hub can impersonate the peer of",
        ),
        (
            'trust = { nodes = ["bob"] }\n[flows',
            'trust = "everyone"\n[flows',
            {"no_inner_addresses_at": "network"},
            "can impersonate the peer of",
        ),
        (
            'echoer = "echoer"',
            'echoer = { run = "echoer", allow = "anyone" }',
            {"no_injection_by": "hub"},
            "into hello unauthenticated",
        ),
        (
            'echoer = "echoer"',
            'echoer = { run = "echoer", allow = "anyone" }',
            {"no_unauthenticated_access_to": "bob/echoer"},
            "an unauthenticated peer reaches bob/echoer by a bare link",
        ),
        (
            '["@bob", "echoer"]',
            '["tcp:127.0.0.1:4000", "forward_to_bob", "echoer"]',
            {"no_plaintext_at": "hub"},
            "hub sees the payload of hello in plaintext",
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
            {"no_unauthenticated_dials_by": "bob"},
            "an unauthenticated peer can make bob connect to 127.0.0.1:80, by outlets.web",
        ),
    ],
)
def test_violated_assertion_shows_the_path(change: str, instead: str, asserted: dict[str, str], text: str) -> None:
    report(GOOD).require(**asserted)
    changed = GOOD.replace(change, instead)
    assert changed != GOOD
    with pytest.raises(AssertionError, match="it does not hold") as raised:
        report(changed).require(**asserted)
    assert text in str(raised.value)
    assert str(raised.value).count("\n    ") > 1, "hop by hop"
    lines = [f'{key} = "{value}"' for key, value in asserted.items()]
    assert not report(changed + "\n[[assert]]\n" + "\n".join(lines)).verdicts[-1].holds, "as in the file"


def test_require_refuses_unknown_names_and_empty_assertions() -> None:
    with pytest.raises(SpecError, match='there is no node "hubb"; did you mean "hub"'):
        report(GOOD).require(no_plaintext_at="hubb")
    with pytest.raises(SpecError, match="it asserts nothing"):
        report(GOOD).require()


def test_sender_is_authenticated_only_by_a_channel() -> None:
    with pytest.raises(AssertionError, match="no channel authenticates alice to hub as the sender of hello"):
        report(GOOD).require(sender_authenticated_to="hub")
    with pytest.raises(AssertionError, match="no flow reaches carol"):
        report(GOOD + "\n[nodes.carol]").require(sender_authenticated_to="carol")


CASES: list[tuple[str, str, str, str]] = [
    (
        "loop",
        "error",
        "flows.hello",
        GOOD.replace('echoer = "echoer"', 'echoer = { run = "echoer", sends = [["echoer"]] }'),
    ),
    ("no route", "error", "flows.hello", GOOD.replace('"@bob", "echoer"', '"@bob", "echo"')),
    ("cannot open", "error", "nodes.alice.secure_channels.bob", GOOD.replace('nodes = ["alice"]', 'nodes = ["hub"]')),
    ("unknown address", "warning", "nodes.alice.links.x", GOOD + '\n[nodes.alice.links.x]\nto = "tcp:elsewhere:4000"'),
    (
        "ambiguous address",
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
        "reachable without channel",
        "warning",
        "nodes.bob.workers.echoer.allow",
        GOOD.replace('echoer = "echoer"', 'echoer = { run = "echoer", allow = "anyone" }'),
    ),
    (
        "trusts everyone",
        "warning",
        "nodes.bob.secure_channel_listeners.api.trust",
        GOOD.replace('{ nodes = ["alice"] }', '"everyone"'),
    ),
    (
        "trusts everyone",
        "warning",
        "nodes.alice.secure_channels.bob.trust",
        GOOD.replace('{ nodes = ["bob"] }\n[flows', '"everyone"\n[flows'),
    ),
    ("open listener", "note", "nodes.hub.listen[0].address", GOOD.replace("127.0.0.1", "hub.example")),
    (
        "unauthenticated dial",
        "warning",
        "nodes.bob.inlets.in",
        GOOD + '\n[nodes.bob.inlets.in]\nlisten = "0.0.0.0:80"\nto = ["@hub", "out"]',
    ),
    (
        "unauthenticated dial",
        "warning",
        "nodes.hub.links.x",
        GOOD.replace('listen = ["tcp', 'forwards = true\nlisten = ["tcp')
        + '\n[nodes.hub.links.x]\nto = "tcp:127.0.0.1:5"\ndial = "on_demand"\n[nodes.x]\nlisten = "tcp:127.0.0.1:5"',
    ),
    (
        "forwards unauthenticated",
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
        "drop_when_full",
        "note",
        "nodes.alice.links.x.drop_when_full",
        GOOD + '\n[nodes.alice.links.x]\nto = "tcp:127.0.0.1:4000"\ndrop_when_full = true',
    ),
    (
        "ring",
        "warning",
        "nodes.a.links.b.drop_when_full",
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
        "no return route",
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
def test_finding_names_the_key_of_the_spec(kind: str, severity: str, where: str, text: str) -> None:
    findings = found(text, kind)
    assert (severity, where) in [(finding.severity, dotted_keys(finding.where)) for finding in findings]
    for finding in findings:
        assert finding.text
        assert finding.advice
        assert not finding.advice.endswith(".")


@pytest.mark.parametrize("end", ["", "_3f6d2a9e7c5b4810b2c4d6e8f0a1b3c5"])
def test_clients_share_a_stream_only_by_an_unguessable_name(end: str) -> None:
    text = """
[nodes.hub]
listen = "tcp:127.0.0.1:1"
secure_channel_listeners.api.trust.nodes = ["a", "b"]
stream_services.hub = { store = "memory", allow = "channels" }
"""
    for node, sends, receives in (("a", f"x{end}", f"y{end}"), ("b", f"y{end}", f"x{end}")):
        text += f"""
[nodes.{node}]
secure_channels.hub = {{ to = ["tcp:127.0.0.1:1", "api"], trust.nodes = "hub" }}
streams.s = {{ via = ["@hub"], service = "hub", index_service = "hub_index", sends = "{sends}", receives = "{receives}" }}
"""
    assert bool(found(text, "claimed twice")) is not bool(end)


def test_two_relays_of_one_name_at_one_hub_are_found() -> None:
    text = GOOD + '\n[nodes.mallory.relays.bob]\nvia = ["tcp:127.0.0.1:4000"]'
    findings = found(text.replace('allow = "channels"', 'allow = "anyone"'), "cannot open")
    assert "the relay cannot be opened: the relay bob at hub belongs to another client" in [
        each.text for each in findings
    ]


def test_unauthenticated_peers_go_on_by_relays_links_streams_and_open_channels() -> None:
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
    reachability = report(text).analysis.reachability
    inner = reachability.reach("two", "inner", bare=False)
    assert inner is not None
    assert inner.manner == "through a secure channel"
    assert reachability.reach("two", "inner", bare=True) is None
    reached = reachability.reach("three", "open", bare=True)
    assert reached is not None
    assert reached.manner == "by a bare stream"
    assert reached.trace[-3:] == (
        "writes the stream y at two/hub",
        "is read by three",
        "addresses three/open",
    )


def test_without_declared_flows_channels_and_inlets_are_followed() -> None:
    text = (
        GOOD[: GOOD.index("[flows")]
        + """
[nodes.bob.outlets.web]
target = "10.0.0.1:80"
[nodes.alice.inlets.web]
listen = "127.0.0.1:8080"
to = ["@bob", "web"]
"""
    )
    flows = {flow.name: flow for flow in report(text).flows}
    assert set(flows) == {"inlet alice/web", "alice → bob/echoer by @bob"}
    assert flows["inlet alice/web"].path.receiver == ("bob", "web")
    assert [
        each.at.name
        for each in flows["inlet alice/web"].path.request.observations
        if each.visible.payload == "plaintext"
    ] == [
        "alice",
        "bob",
        "bob → 10.0.0.1:80",
        "10.0.0.1:80",
    ], "the outlet's target is reached in plaintext"


TUNNEL = """
[nodes.office]
listen = "tcp:127.0.0.1:4400"
secure_channel_listeners.api.trust.nodes = "home"
outlets.web.target = "127.0.0.1:8401"
[nodes.home]
secure_channels.office = { to = ["tcp:127.0.0.1:4400", "api"], trust.nodes = "office" }
inlets.web = { listen = "127.0.0.1:4902", to = ["@office", "web"] }
"""
SAFE = {
    "no_plaintext_at": "network",
    "no_injection_by": "network",
    "no_unauthenticated_access_to": "office/web",
    "no_unauthenticated_dials_by": "office",
}


def test_tunnel_shows_no_plaintext_to_the_network() -> None:
    tunnel = report(TUNNEL)
    tunnel.require(**SAFE, sender_authenticated_to="office")
    assert tunnel.findings == ()
    with pytest.raises(AssertionError, match="sees the payload of inlet home/web in plaintext"):
        report(TUNNEL.replace("127.0.0.1:8401", "10.0.0.1:8401")).require(no_plaintext_at="network")


@pytest.mark.parametrize("asserted", SAFE)
def test_clients_of_an_open_inlet_reach_its_outlet(asserted: str) -> None:
    opened = report(TUNNEL.replace("127.0.0.1:4902", "0.0.0.0:4902"))
    with pytest.raises(AssertionError, match="connects to"):
        opened.require(**{asserted: SAFE[asserted]})
    flow = opened.flow("inlet home/web")
    for observation in (flow.path.request.observations[0], flow.path.reply.observations[-1]):
        assert (str(observation.at), observation.visible.payload) == ("outsider the inlet home/web", "plaintext")
        assert observation.can_inject == "as the sender"
    assert [str(dotted_keys(finding.where)) for finding in opened.findings] == ["nodes.home.inlets.web"]


def test_open_inlet_violates_assertions_about_other_flows_to_its_outlet() -> None:
    text = TUNNEL.replace("127.0.0.1:4902", "0.0.0.0:4902") + '[flows.mine]\nfrom = "home"\nto = ["@office", "web"]'
    with pytest.raises(AssertionError, match="accepts messages of any unauthenticated peer by an inlet"):
        report(text).require(flow="mine", no_injection_by="network")


def test_unauthenticated_peers_reach_a_relay() -> None:
    with pytest.raises(AssertionError, match="an unauthenticated peer reaches hub/forward_to_bob by a bare link"):
        report(GOOD).require(no_unauthenticated_access_to="hub/forward_to_bob")


@pytest.mark.parametrize(
    ("sends", "text"),
    [
        ('["missing"]', "bob has no address missing"),
        ('["tcp:127.0.0.1:4000", "api"]', "hub has no address api"),
        ('["@hub", "static_forwarding_service"]', "the relay service of hub accepts registrations only"),
    ],
)
def test_worker_that_passes_on_to_no_address_is_an_error(sends: str, text: str) -> None:
    worker = f'echoer = {{ run = "echoer", sends = [["echoer_two"], {sends}] }}\nworkers.echoer_two = "echoer"'
    (finding,) = found(GOOD.replace('echoer = "echoer"', worker), "no route")
    assert (finding.severity, dotted_keys(finding.where)) == ("error", "nodes.bob.workers.echoer.sends[1]")
    assert text in finding.text
    assert finding.trace


def test_unopened_channel_is_one_finding_whatever_depends_on_it() -> None:
    text = GOOD.replace('nodes = ["bob"] }\n[nodes.bob]', 'nodes = ["alice"] }\n[nodes.bob]')
    assert text != GOOD
    verified = report(text)
    assert not verified.flow("hello").path.arrives
    assert [dotted_keys(each.where) for each in verified.findings if each.severity == "error"] == [
        "nodes.bob.secure_channels.hub"
    ], "and neither its relay, nor the channel by that relay, nor the flow in that channel"


def test_circular_wait_across_nodes_is_found() -> None:
    text = """
[nodes.hub]
listen = "tcp:127.0.0.1:4000"
relay_service = {}
[nodes.a]
secure_channel_listeners.api.trust.nodes = "b"
secure_channels.b = { to = ["tcp:127.0.0.1:4000", "forward_to_b", "api"], trust.nodes = "b" }
relays.a.via = ["@b"]
[nodes.b]
secure_channel_listeners.api.trust.nodes = "a"
secure_channels.a = { to = ["tcp:127.0.0.1:4000", "forward_to_a", "api"], trust.nodes = "a" }
relays.b.via = ["@a"]
"""
    assert len(found(text, "cannot open")) == 4


@pytest.mark.parametrize(
    ("limits", "instead"), [("relays = 1", "relays = 2"), ("relays_per_client = 1", "relays_per_client = 2")]
)
def test_relay_limit_below_the_need_is_an_error(limits: str, instead: str) -> None:
    text = (
        GOOD.replace('allow = "channels"\n', f'allow = "channels"\nlimits = {{ {limits} }}\n')
        + '[nodes.bob.relays.second]\nvia = ["@hub"]'
    )
    (finding,) = found(text, "cannot open")
    assert dotted_keys(finding.where) == "nodes.bob.relays.second"
    assert "relay_service.limits." in finding.text
    assert not found(text.replace(limits, instead), "cannot open")


def test_stream_limit_below_the_need_is_an_error() -> None:
    text = """
[nodes.hub]
listen = "tcp:127.0.0.1:1"
stream_services.stream_kafka = { store = "memory", limits.streams = 1 }
[nodes.a]
streams.s = { via = ["tcp:127.0.0.1:1"], sends = "x", receives = "y" }
"""
    (finding,) = found(text, "cannot open")
    assert "allows a client 1 streams" in finding.text
    assert not found(text.replace("streams = 1", "streams = 2"), "cannot open")


# The command


def check(tmp_path: Path, text: str, *options: str) -> tuple[int, str]:
    file = tmp_path / "topology.toml"
    file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["check", str(file), *options])
    return result.exit_code, result.output


def test_check_prints_tables_and_assertions(tmp_path: Path) -> None:
    code, output = check(tmp_path, GOOD)
    assert code == 0
    assert output.splitlines()[:9] == [
        "hello: alice => @bob => echoer",
        "  arrives at bob/echoer, sender authenticated as alice; answers come back",
        "  hop                  sees        can   addresses in the clear",
        "  alice                plaintext   -     echoer",
        "    alice → hub (tcp)  ciphertext  drop  -",
        "  hub                  ciphertext  drop  -",
        "    bob → hub (tcp)    ciphertext  drop  -",
        "  bob                  plaintext   -     echoer",
        "",
    ]
    assert output.splitlines()[-1].startswith("✓ assert[0]: no_plaintext_at hub, network, stores; ")


def test_check_fails_for_violations_broken_files_and_with_strict_for_warnings(
    tmp_path: Path,
) -> None:
    risky = GOOD.replace('{ nodes = ["alice"] }', '"everyone"').replace('no_injection_by = ["hub", "network"]\n', "")
    assert check(tmp_path, risky)[0] == 0
    assert check(tmp_path, risky, "--strict")[0] == 1
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
    values = json.loads(output)
    assert values["flows"][0]["receiver"] == "bob/echoer"
    assert values["assertions"][0]["holds"] is True
    schema = CliRunner().invoke(main, ["check", "--schema"])
    assert json.loads(schema.output)["title"] == "A topology of trionode"
    assert CliRunner().invoke(main, ["check"]).exit_code == 2


@pytest.mark.parametrize("stage", STAGES)
def test_every_report_renders_as_text_and_json(stage: str) -> None:
    verified = report(STAGES[stage])
    assert list(render(verified))
    assert json.dumps(as_json(verified))


def test_check_warns_once_of_what_this_machine_lacks(tmp_path: Path) -> None:
    (tmp_path / "beside.py").touch()
    text = """
[nodes.hub]
listen = "udp:127.0.0.1:1"
stream_services.s.store = "sqlte:foo"
transports.tcp.nonsense = 1
workers = { shipped = "echoer", beside = "beside:work", nowhere = "no_such_module.part:work" }
[nodes.a]
links.x.to = "udp:127.0.0.1:1"
"""
    code, output = check(tmp_path, text)
    assert code == 0
    warnings = [
        line.split(": ")[1]
        for line in output.splitlines()
        if line.startswith("warning") and "unauthenticated" not in line
    ]
    assert warnings == [
        "nodes.hub.listen",
        "nodes.hub.stream_services.s.store",
        "nodes.hub.transports.tcp.nonsense",
        "nodes.hub.workers.nowhere.run",
    ]
    assert check(tmp_path, text, "--strict")[0] == 1
    code, output = check(
        tmp_path, text.replace("\nlisten", "\nexternal = true\nlisten").replace("links", "external = true\nlinks")
    )
    assert "not installed" not in output
    assert "is installed" not in output


def test_check_says_that_there_are_no_flows(tmp_path: Path) -> None:
    code, output = check(tmp_path, "[nodes.a]")
    assert code == 0
    assert output.startswith("no flows, so nothing to prove")


def test_flow_that_is_not_sent_has_no_table(tmp_path: Path) -> None:
    _, output = check(tmp_path, GOOD.replace('nodes = ["alice"]', 'nodes = ["hub"]'))
    assert "does not arrive" in output
    assert "addresses in the clear" not in output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["check", "graph"])
def test_full_disk_is_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "topology.toml").write_text(GOOD, encoding="utf-8")
    program = [sys.executable, "-m", "trionode", command, str(tmp_path / "topology.toml")]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == b"standard output can't be written: No space left on device\n"
