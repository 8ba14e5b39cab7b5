import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionode.counters import DropReason
from trionode.errors import AddressInUseError, UnknownAddressError
from trionode.protocol.rules.access import from_anywhere, from_local
from trionode.protocol.rules.verdicts import Truncated, Verdict
from trionode.protocol.wire.address import encode_address, local
from trionode.protocol.wire.message import LOCAL, Message, Origin
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.memory_channel import MemoryChannel
from trionode.routing.router import MAX_DELIVERIES, Router

A, B = local("a"), local("b")
AFAR = Origin(link=local("link"))


def message(*onward: bytes, origin: Origin = LOCAL) -> Message:
    return Message(onward, (), b"payload", origin)


def test_message_goes_to_the_hop_of_its_first_address_which_returns_a_queue() -> None:
    router, queue = Router(), MemoryChannel[object]()
    got: list[Message] = []

    def hop(message: Message) -> ByteBudget | None:
        got.append(message)
        return queue

    router.register(A, hop, allow=from_anywhere)
    sent = message(A, B)
    assert router.deliver(sent) is queue
    assert got == [sent]
    assert A in router
    assert B not in router


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=8)), unique=True, min_size=1, max_size=20), st.data())
def test_addresses_differ_by_type_and_value(pairs: list[tuple[int, bytes]], data: st.DataObject) -> None:
    router = Router()
    inboxes: dict[tuple[int, bytes], list[Message]] = {pair: [] for pair in pairs}
    for pair in pairs:
        router.register(encode_address(*pair), inboxes[pair].append, allow=from_anywhere)
    chosen = data.draw(st.sampled_from(pairs))
    router.deliver(message(encode_address(*chosen)))
    assert [pair for pair, inbox in inboxes.items() if inbox] == [chosen]


def test_an_address_is_taken_once_and_free_again() -> None:
    router = Router()
    router.register(A, lambda _: None, allow=from_anywhere)
    with pytest.raises(AddressInUseError, match="0#a is in use on this node: close its owner"):
        router.register(A, lambda _: None, allow=from_anywhere)
    router.unregister(A)
    router.unregister(A)
    router.register(A, lambda _: None, allow=from_anywhere)


def test_remote_message_to_an_unknown_address_is_dropped_and_counted() -> None:
    router = Router()
    assert router.deliver(message(A, origin=AFAR)) is None
    assert router.deliver(message(origin=AFAR)) is None
    assert router.counters == {DropReason.UNKNOWN_ADDRESS: 2}


def test_local_message_to_an_unknown_address_raises_and_says_what_to_do() -> None:
    router = Router()
    with pytest.raises(
        UnknownAddressError, match=r"first hop of the route \[0#a => 0#b\]. Start a worker there, connect first"
    ):
        router.deliver(message(A, B))
    with pytest.raises(UnknownAddressError, match="the route is empty"):
        router.deliver(message())
    assert not router.counters


def test_refused_message_is_dropped_and_counted() -> None:
    router = Router()
    got: list[Message] = []
    router.register(A, got.append, allow=from_local)
    router.deliver(message(A, origin=AFAR))
    assert not got
    assert router.counters == {DropReason.ACCESS_DENIED: 1}
    router.deliver(message(A))
    assert len(got) == 1


def test_a_message_has_a_bounded_number_of_local_deliveries() -> None:
    router, count = Router(), 0

    def around(message: Message) -> ByteBudget | None:
        nonlocal count
        count += 1
        return router.deliver(message)

    router.register(A, around, allow=from_anywhere)
    router.deliver(message(A))
    assert count == MAX_DELIVERIES
    assert router.counters == {DropReason.DELIVERY_LOOP: 1}


def test_limit_of_a_path_is_that_of_its_first_address() -> None:
    router = Router()
    router.register(A, lambda _: None, allow=from_anywhere, limit=65_000)
    router.register(B, lambda _: None, allow=from_anywhere)
    assert [router.limit(address) for address in (A, B, local("unknown"))] == [65_000, None, None]


def test_prefix_takes_all_addresses_that_begin_with_it_and_have_no_hop() -> None:
    router, queue = Router(), MemoryChannel[object]()
    prefixed: list[Message] = []
    own: list[Message] = []

    def serve(message: Message) -> ByteBudget | None:
        prefixed.append(message)
        return queue

    router.register_prefix(b"ST_", serve, allow=from_local)
    router.register(local("ST_own"), own.append, allow=from_anywhere)
    assert router.deliver(message(local("ST_1"))) is queue
    router.deliver(message(local("ST_own")))
    router.deliver(message(local("ST_2"), origin=AFAR))
    router.deliver(message(encode_address(1, b"ST_1"), origin=AFAR))
    assert (len(prefixed), len(own)) == (1, 1)
    assert router.counters == {DropReason.ACCESS_DENIED: 1, DropReason.UNKNOWN_ADDRESS: 1}
    with pytest.raises(AddressInUseError, match="addresses that overlap"):
        router.register_prefix(b"ST_x", serve, allow=from_local)
    router.unregister_prefix(b"ST_")
    with pytest.raises(UnknownAddressError):
        router.deliver(message(local("ST_1")))


def test_a_verdict_reaches_those_who_asked_for_those_of_its_address() -> None:
    router, verdict = Router(), Truncated("s", 0, 1)
    got: list[tuple[str, Verdict]] = []

    def first(found: Verdict) -> None:
        got.append(("first", found))
        router.ignore_verdicts(A, first)  # while it is called

    def second(found: Verdict) -> None:
        got.append(("second", found))

    router.on_verdict(A, second)  # the address does not exist: nothing is kept
    router.register(A, lambda _: None, allow=from_anywhere)
    router.report(A, verdict)
    assert not got
    router.on_verdict(A, first)
    router.on_verdict(A, second)
    router.report(local("other"), verdict)
    router.report(A, verdict)
    router.report(A, verdict)
    assert got == [("first", verdict), ("second", verdict), ("second", verdict)]
    router.unregister(A)
    router.report(A, verdict)
    assert len(got) == 3
    assert not router._verdict_callbacks


def test_hops_that_deliver_to_each_other_without_end_are_stopped_threat_19() -> None:
    router = Router()
    router.register(A, router.deliver, allow=from_anywhere)
    assert router.deliver(message(A, origin=AFAR)) is None
    assert router.counters == {DropReason.DELIVERY_LOOP: 1}


def test_a_message_for_an_unknown_address_gets_no_answer_threat_25() -> None:
    router = Router()
    answers: list[Message] = []
    router.register(B, answers.append, allow=from_anywhere)
    router.deliver(Message((A,), (B,), b"who is there?", AFAR))
    assert answers == []
    assert router.counters == {DropReason.UNKNOWN_ADDRESS: 1}
