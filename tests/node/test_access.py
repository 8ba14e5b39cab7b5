import pytest

from trionode.access import Access, from_anywhere, from_here, from_here_or_channels, from_identities
from trionode.protocol.address import local
from trionode.protocol.message import HERE, Facts

ALICE, BOB = bytes(32), bytes(31) + b"\x01"
FACTS = {
    "here": HERE,
    "link": Facts(link=local("link")),
    "trunk": Facts(link=local("link"), trunk=True),
    "stream": Facts(stream=local("stream")),
    "channel over a link": Facts(link=local("link"), identifier=ALICE),
    "channel over a stream": Facts(stream=local("stream"), identifier=ALICE),
    "channel within the node": Facts(identifier=BOB),
}
RULES: dict[str, tuple[Access, set[str]]] = {
    "from_here": (from_here, {"here"}),
    "from_here_or_channels": (
        from_here_or_channels,
        {"here", "channel over a link", "channel over a stream", "channel within the node"},
    ),
    "from_anywhere": (from_anywhere, set(FACTS)),
    "from_identities of Alice": (from_identities(ALICE), {"channel over a link", "channel over a stream"}),
    "from_identities of both": (
        from_identities(ALICE, BOB),
        {"channel over a link", "channel over a stream", "channel within the node"},
    ),
    "from_identities of nobody": (from_identities(), set()),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_admits_exactly_those_it_names(rule: str) -> None:
    allow, admitted = RULES[rule]
    assert {origin for origin, facts in FACTS.items() if allow(facts)} == admitted


def test_only_messages_that_began_here_are_from_here() -> None:
    assert {origin for origin, facts in FACTS.items() if facts.is_here} == {"here"}
