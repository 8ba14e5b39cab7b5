from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import NoReturn

import pytest

from trionode.errors import ConfigError, LocalError
from trionode.topology.check.checks import check_spec
from trionode.topology.check.plugins import _load, missing_plugin
from trionode.topology.errors import Position, Problem, SpecError, closest, dotted_keys, quoted
from trionode.topology.load.loader import load_topology, parse_topology, read_topology
from trionode.topology.positions import find_positions
from trionode.topology.spec import (
    ANYONE,
    CHANNELS,
    AccessSpec,
    AssertSpec,
    ChannelListenerSpec,
    ChannelSpec,
    FlowSpec,
    ListenerSpec,
    NodeSpec,
    RelaySpec,
    StoreSpec,
    StreamServiceSpec,
    TopologySpec,
    TrustSpec,
    WorkerSpec,
)

BOB = """\
[nodes.bob]
listen = "tcp:127.0.0.1:4000"
workers.echoer = "echoer"
secure_channel_listeners.api.trust.nodes = "alice"
"""
ALICE = """\
[nodes.alice.secure_channels.bob]
to = ["tcp:127.0.0.1:4000", "api"]
trust = { nodes = ["bob"] }

[flows.hello]
from = "alice"
to = ["@bob", "echoer"]

[[assert]]
flow = "hello"
sender_authenticated_to = "bob"
"""
PYTHON = TopologySpec(
    {
        "bob": NodeSpec(
            listen="tcp:127.0.0.1:4000",
            workers={"echoer": "echoer"},
            secure_channel_listeners={"api": ChannelListenerSpec(trust=TrustSpec(nodes=["alice"]))},
        ),
        "alice": NodeSpec(
            secure_channels={"bob": ChannelSpec(to=["tcp:127.0.0.1:4000", "api"], trust=TrustSpec(nodes=["bob"]))}
        ),
    },
    flows={"hello": FlowSpec("alice", ["@bob", "echoer"])},
    assertions=[AssertSpec(flow="hello", sender_authenticated_to="bob")],
)


def problems_of(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_topology(text, "t.toml")
    return [str(problem) for problem in caught.value.problems]


def test_a_file_and_the_classes_give_the_same_spec() -> None:
    assert parse_topology(BOB + ALICE) == PYTHON


def test_several_files_are_one_topology(tmp_path: Path) -> None:
    (tmp_path / "bob.toml").write_text(BOB + '[[assert]]\nno_unauthenticated_dials_by = "bob"\n')
    (tmp_path / "alice.toml").write_text(ALICE)
    reading = read_topology(tmp_path / "bob.toml", tmp_path / "alice.toml")
    assert reading.spec.nodes == PYTHON.nodes
    assert reading.spec.assertions == (AssertSpec(no_unauthenticated_dials_by=["bob"]), *PYTHON.assertions)
    assert reading.positions["assert", 1, "flow"].key == Position(str(tmp_path / "alice.toml"), 10, 1)


HUB = '[nodes.hub]\nlisten = "tcp:127.0.0.1:4000"\n'
EXTERNAL_HUB = HUB + "external = true\n"


@pytest.mark.parametrize("names", list(permutations(["alice.toml", "hub.toml", "zoe.toml"])))
def test_own_file_of_a_node_takes_precedence(names: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "alice.toml").write_text(EXTERNAL_HUB + "[nodes.alice]\n")
    (tmp_path / "hub.toml").write_text("# Its own.\n" + HUB + "relay_service = {}\n")
    (tmp_path / "zoe.toml").write_text(EXTERNAL_HUB.replace("127.0.0.1", "localhost") + "[nodes.zoe]\n")
    reading = read_topology(*(tmp_path / name for name in names))
    assert reading.spec.nodes.keys() == {"alice", "hub", "zoe"}
    assert not reading.spec.nodes["hub"].external
    assert reading.positions["nodes", "hub"].key == Position(str(tmp_path / "hub.toml"), 2, 8)
    assert ("nodes", "hub", "external") not in reading.positions


def test_two_files_can_describe_the_same_external_node(tmp_path: Path) -> None:
    (tmp_path / "alice.toml").write_text(EXTERNAL_HUB + "[nodes.alice]\n")
    (tmp_path / "zoe.toml").write_text(EXTERNAL_HUB + "[nodes.zoe]\n")
    both = tmp_path / "alice.toml", tmp_path / "zoe.toml"
    assert load_topology(*both).nodes["hub"].external
    both[1].write_text(EXTERNAL_HUB.replace("127.0.0.1", "localhost"))
    with pytest.raises(SpecError, match=r"nodes\.hub: is described at .* already"):
        load_topology(*both)


def test_problems_of_several_files_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "bob.toml").write_text(BOB + '[[assert]]\nsender_authenticated_to = "nobody"\n')
    (tmp_path / "alice.toml").write_text(ALICE + '[[assert]]\nflow = "hallo"\nsender_authenticated_to = "rob"\n' + BOB)
    with pytest.raises(SpecError) as caught:
        load_topology(tmp_path / "bob.toml", tmp_path / "alice.toml")
    reported = str(caught.value).replace(f"{tmp_path}/", "").split("\n")
    assert reported == [
        'bob.toml:6:27: assert[0].sender_authenticated_to: there is no node "nobody"; known are: alice, bob',
        'alice.toml:13:8: assert[2].flow: there is no flow "hallo"; did you mean "hello"? known are: hello',
        'alice.toml:14:27: assert[2].sender_authenticated_to: there is no node "rob"; did you mean "bob"? known are: alice, bob',
        "alice.toml:15:8: nodes.bob: is described at bob.toml:1:8 already: describe each node and flow in one file",
    ]


def test_a_missing_file_and_a_file_that_is_not_text_are_separate_problems(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(SpecError) as caught:
        load_topology(tmp_path / "none.toml", tmp_path / "bytes.toml", tmp_path)
    reported = str(caught.value).replace(str(tmp_path), "TMP").split("\n")
    assert sorted(reported) == [
        "TMP/bytes.toml:1:1: is not UTF-8 at byte 5: save it as UTF-8",
        "TMP/none.toml:1:1: can't be read: No such file or directory",
        "TMP:1:1: can't be read: Is a directory",
    ]


def test_without_files_there_is_no_node() -> None:
    with pytest.raises(SpecError, match="it has no nodes"):
        load_topology()


def test_windows_line_ends_and_byte_order_mark() -> None:
    assert parse_topology("\ufeff" + (BOB + ALICE).replace("\n", "\r\n")) == PYTHON
    assert problems_of("\ufeff[nodes.bob]\r\nlisten = 1\r\n")[0].startswith("t.toml:2:10: nodes.bob.listen: ")


def test_columns_count_characters() -> None:
    text = 'a = "éü"\n"ö.ö" = { "ü" = ["é", \'x\'] }\n'
    assert find_positions(text, "f")["ö.ö", "ü", 1].value == Position("f", 2, 23)


def test_broken_value_is_not_reported_as_missing() -> None:
    text = BOB.replace('"alice"', "5") + "[[assert]]\nsender_authenticated_to = 5\n[[assert]]\nproved_to = 5\n"
    assert [reported.split(": ")[1] for reported in problems_of(text)] == [
        "nodes.bob.secure_channel_listeners.api.trust.nodes",
        "assert[0].sender_authenticated_to",
        "assert[1].proved_to",
    ]


def test_numbers_beyond_the_digit_limit_of_python_are_reported() -> None:
    number = "0x" + "f" * 6000
    assert problems_of(f"[nodes.bob]\nlisten = {number}\n")[0].endswith("this is a number beyond 64 bits")
    text = BOB + ALICE + f"[nodes.alice.streams.s]\nvia = ['@bob']\nsends = 'a'\nreceives = 'b'\nstart = {number}\n"
    assert problems_of(text)[0].endswith("0 to 2^64-1; this is a number beyond 64 bits")


def test_references_to_a_broken_table_are_no_problem() -> None:
    assert problems_of(BOB + ALICE.replace("to = [", "too = [")) == [
        't.toml:6:1: nodes.alice.secure_channels.bob.too: unknown key; did you mean "to"? known are: protocol_version, to, trust',
        't.toml:11:1: flows.hello.too: unknown key; did you mean "to"? known are: answered, from, to',
    ]


def test_only_nodes_that_run_here_need_their_plugins() -> None:
    text = BOB + ALICE + '[nodes.carol]\nlisten = "pigeon:roof"\n'
    assert "pigeon" in problems_of(text)[0]
    parse_topology(text, nodes=["alice"])
    spec = TopologySpec({"carol": NodeSpec(listen="pigeon:roof")})
    assert len(check_spec(spec)) == 1
    assert check_spec(spec, transports=["pigeon"]) == ()


def test_an_error_names_what_a_plugin_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(group: str, name: str) -> NoReturn:
        raise ConfigError(f"no package for {name} of {group}")

    _load.cache_clear()
    monkeypatch.setattr("trionode.topology.check.plugins.load_plugin", load)
    try:
        assert missing_plugin("trionode.transports", "ws") == "no package for ws of trionode.transports"
    finally:
        _load.cache_clear()


def test_constructors_accept_what_files_accept() -> None:
    assert NodeSpec(listen=["tcp:a:1", ListenerSpec("tcp:a:2", drop_when_full=True)]).listen == (
        ListenerSpec("tcp:a:1"),
        ListenerSpec("tcp:a:2", drop_when_full=True),
    )
    assert NodeSpec(workers={"e": "echoer"}).workers == {"e": WorkerSpec("echoer", allow=CHANNELS)}
    assert StreamServiceSpec("memory", allow="anyone") == StreamServiceSpec(StoreSpec("memory"), allow=ANYONE)
    assert ChannelSpec(["tcp:a:1", "api"], "everyone").trust == TrustSpec(everyone=True)
    assert RelaySpec(["tcp:a:1"]).to is None
    assert AccessSpec(nodes="bob").nodes == ("bob",)
    assert NodeSpec(transports={"tcp": {"names": ["a", "b"]}}).transports == {"tcp": {"names": ("a", "b")}}


def test_constructors_refuse_a_text_for_a_route_and_words_that_they_do_not_know() -> None:
    with pytest.raises(LocalError, match=r"a route is a list of its hops, such as \['@bob'\]"):
        FlowSpec("alice", "@bob")
    with pytest.raises(LocalError, match="trust is 'everyone', or"):
        ChannelSpec(["@bob", "api"], "anyone")
    with pytest.raises(LocalError, match="access is 'local', 'channels', 'anyone', or"):
        WorkerSpec("echoer", allow="everyone")
    with pytest.raises(LocalError, match="expected a list of routes"):
        WorkerSpec("echoer", sends="@bob")


def test_a_spec_made_in_python_is_checked_without_positions() -> None:
    spec = TopologySpec(
        {"alice": NodeSpec(secure_channels={"b": ChannelSpec(["@c", "api"], "everyone", "clasic")})},  # type: ignore[arg-type]
        flows={"f": FlowSpec("alic", ["@b"])},
    )
    assert [str(problem) for problem in check_spec(spec)] == [
        'nodes.alice.secure_channels.b.to[0]: node "alice" has no secure channel or stream "c"; known are: @b',
        'nodes.alice.secure_channels.b.protocol_version: expected "current" or "classic"; this is the text "clasic"',
        'flows.f.from: there is no node "alic"; did you mean "alice"? known are: alice',
    ]
    assert check_spec(PYTHON) == ()


def test_an_access_word_with_names_beside_it_is_a_problem() -> None:
    spec = TopologySpec({"bob": NodeSpec(workers={"e": WorkerSpec("echoer", allow=AccessSpec("local", nodes="bob"))})})
    assert [str(problem) for problem in check_spec(spec)] == [
        'nodes.bob.workers.e.allow: it is "local" and has a list of peers: keep one of the two'
    ]


def test_nodes_on_two_machines_may_listen_at_all_their_addresses() -> None:
    node = NodeSpec(listen="tcp:0.0.0.0:4000")
    assert check_spec(TopologySpec({"a": node, "b": node})) == ()
    local = NodeSpec(listen=["tcp:127.0.0.1:4000", "ws:127.0.0.1:4000/x"])
    assert [problem.path for problem in check_spec(TopologySpec({"a": local}))] == [
        ("nodes", "a", "listen", 1, "address")
    ]
    loop = NodeSpec(listen=["loopback:a", "loopback:", "loopback:"])
    assert [problem.path for problem in check_spec(TopologySpec({"a": loop, "b": loop}))] == [
        ("nodes", "b", "listen", 0, "address")
    ]


def test_an_address_in_a_route_has_at_most_1024_bytes() -> None:
    node = NodeSpec(secure_channels={"b": ChannelSpec(["tcp:127.0.0.1:1", "x" * 1025], "everyone")})
    assert "at most 1024 bytes" in str(check_spec(TopologySpec({"a": node}))[0])


def test_a_route_may_have_31_hops() -> None:
    node = NodeSpec(secure_channels={"b": ChannelSpec(["tcp:127.0.0.1:1", *["x"] * 30], "everyone")})
    assert check_spec(TopologySpec({"a": node})) == ()
    node = NodeSpec(secure_channels={"b": ChannelSpec(["tcp:127.0.0.1:1", *["x"] * 31], "everyone")})
    assert "at most 31 hops" in str(check_spec(TopologySpec({"a": node}))[0])


def test_keys_and_texts_are_shown_as_toml_writes_them_escaped_and_cut() -> None:
    assert dotted_keys(("nodes", "a b", "listen", 0)) == 'nodes."a b".listen[0]'
    assert quoted('a"\n\\' + "x" * 100) == '"a\\"\\n\\\\' + "x" * 76 + '…"'
    assert str(Problem((), "text")) == "text"


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("Listen", ["listen", "links"], "listen"),
        ("secure-channel", ["secure_channels", "streams"], "secure_channels"),
        ("zzz", ["listen"], None),
    ],
)
def test_the_nearest_name_is_found(name: str, known: list[str], near: str | None) -> None:
    assert closest(name, known) == near
