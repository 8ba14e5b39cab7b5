import pytest

from trionode.protocol.rules.access import (
    Access,
    from_anywhere,
    from_identities,
    from_local,
    from_local_or_channels,
    from_local_or_links,
)
from trionode.protocol.wire.address import local
from trionode.protocol.wire.message import LOCAL, Origin

ALICE, BOB = bytes(32), bytes(31) + b"\x01"
ORIGINS = {
    "here": LOCAL,
    "link": Origin(link=local("link")),
    "drop_when_full": Origin(link=local("link"), drop_when_full=True),
    "stream": Origin(stream=local("stream")),
    "channel over a link": Origin(link=local("link"), identifier=ALICE),
    "channel over a stream": Origin(stream=local("stream"), identifier=ALICE),
    "channel within the node": Origin(identifier=BOB),
}
RULES: dict[str, tuple[Access, set[str]]] = {
    "from_here": (from_local, {"here"}),
    "from_local_or_channels": (
        from_local_or_channels,
        {"here", "channel over a link", "channel over a stream", "channel within the node"},
    ),
    "from_local_or_links": (from_local_or_links, {"here", "link", "drop_when_full", "stream"}),
    "from_anywhere": (from_anywhere, set(ORIGINS)),
    "from_identities of Alice": (from_identities(ALICE), {"channel over a link", "channel over a stream"}),
    "from_identities of both": (
        from_identities(ALICE, BOB),
        {"channel over a link", "channel over a stream", "channel within the node"},
    ),
    "from_identities without identifiers": (from_identities(), set()),
}


@pytest.mark.parametrize("rule", RULES)
def test_access_rule_admits_exactly_the_origins_it_names(rule: str) -> None:
    allow, admitted = RULES[rule]
    assert {name for name, origin in ORIGINS.items() if allow(origin)} == admitted


def test_only_local_messages_have_a_local_origin() -> None:
    assert {name for name, origin in ORIGINS.items() if origin.is_local} == {"here"}
