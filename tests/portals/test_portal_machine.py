from collections import deque
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import WireError
from trionode.protocol import portal
from trionode.protocol.portal import (
    MAX_DATA,
    MAX_UNPACED,
    Credit,
    Disconnect,
    EndOfInput,
    Payload,
    Ping,
    Pong,
    PortalEnd,
    PortalMessage,
    State,
)
from trionode.protocol.wire.classic_codec import CLASSIC
from trionode.protocol.wire.current_codec import CURRENT

_NAMES = {"ping": Ping(), "pong": Pong(), "disconnect": Disconnect()}


@pytest.mark.parametrize("protocol_version", ["current", "classic"])
def test_every_message_of_the_rust_transcripts_decodes_and_encodes_to_the_same_bytes(protocol_version: str) -> None:
    read, head = (CURRENT.decode, 4) if protocol_version == "current" else (CLASSIC.decode, 2)
    (transcript,) = wire_vectors("portals.json", f"{protocol_version}.portal.transcript")
    for step in transcript["steps"]:
        payload = bytes.fromhex(step["payload"])
        frame = bytes.fromhex(step["hex"])
        assert read(frame[head:])[2] == payload
        expected = _NAMES.get(step["message"]) or Payload(bytes.fromhex(step["data"]))
        assert portal.decode(payload) == expected
        assert portal.encode(expected) == payload


def test_every_message_vector_decodes_and_encodes_to_the_same_bytes() -> None:
    vectors = wire_vectors("portals.json", "portal.message")
    assert vectors
    for vector in vectors:
        expected = Payload(bytes.fromhex(vector["fields"]["data"]), vector["fields"]["counter"])
        assert portal.decode(bytes.fromhex(vector["hex"])) == expected
        assert portal.encode(expected).hex() == vector["hex"]


_MESSAGES: st.SearchStrategy[PortalMessage] = st.one_of(
    st.builds(Ping, st.none() | st.integers(0, 2**64 - 1)),
    st.builds(Pong, st.none() | st.integers(0, 2**64 - 1)),
    st.builds(Disconnect),
    st.builds(Payload, st.binary(max_size=300), st.none() | st.integers(0, 2**16 - 1)),
    st.builds(Credit, st.integers(0, 2**64 - 1)),
    st.builds(EndOfInput, st.integers(0, 2**64 - 1)),
)


@given(_MESSAGES)
def test_written_data_is_read_again(message: PortalMessage) -> None:
    assert portal.decode(portal.encode(message)) == message


@given(st.binary(max_size=40))
def test_any_bytes_are_a_message_or_a_wire_error(junk: bytes) -> None:
    with suppress(WireError):
        portal.decode(junk)


@pytest.mark.parametrize("payload", ["0080", "01ffffffffffffffffffffffff", "0201", "0301ff02", "0301ff0001"])
def test_bytes_behind_a_message_are_ignored(payload: str) -> None:
    assert portal.encode(portal.decode(bytes.fromhex(payload)))[0] == int(payload[:2], 16)


# -- one end -----------------------------------------------------------------------------------------------------------


def said(end: PortalEnd) -> list[PortalMessage]:
    messages = list(end.outgoing)
    end.outgoing.clear()
    return messages


def state_of(end: PortalEnd) -> State:
    # A call, because type checkers believe that an attribute which they have narrowed stays so.
    return end.state


def opened(*, window: int | None = 1000) -> PortalEnd:
    """An inlet's end that an outlet has answered, which supports credit unless its window is None."""
    end = PortalEnd.inlet(1000)
    end.receive(Pong(window))
    assert said(end) == [Ping(1000)]
    assert state_of(end) is State.OPEN
    return end


def test_a_rust_outlet_is_answered_as_the_specification_says() -> None:
    end = opened(window=None)
    end.receive(Payload(b"hello"))
    end.send(b"abc")
    end.written(len(end.take()))
    assert said(end) == [Payload(b"abc")], "no counter, no credit"
    end.input_ended()
    assert said(end) == [Disconnect()], "no half-close"
    assert state_of(end) is State.CLOSED
    assert not end.is_broken


def test_a_rust_inlet_is_answered_as_the_specification_says() -> None:
    end = PortalEnd.outlet(Ping())
    end.receive(Payload(b"too early"))
    end.connected()
    assert said(end) == [Pong()]
    end.receive(Payload(b"hello"))
    end.receive(Disconnect())
    assert end.take() == b"hello", "what came before is still written"
    assert state_of(end) is State.CLOSED
    assert not end.is_broken
    assert end.sendable == 0


def test_message_out_of_turn_has_no_effect() -> None:
    early = PortalEnd.inlet()
    before: list[PortalMessage] = [Payload(b"early"), Credit(5), EndOfInput(0), Ping()]
    for message in before:
        early.receive(message)
    assert state_of(early) is State.WAITING
    assert early.waiting == 0
    end = opened(window=None)
    late: list[PortalMessage] = [Ping(5), Pong(5), Credit(5), EndOfInput(0)]
    for message in late:
        end.receive(message)
    assert state_of(end) is State.OPEN
    assert not end.speaks_credit
    assert said(end) == []


def test_unreachable_target_is_reported_to_each_kind_of_inlet() -> None:
    for ping, expected in ((Ping(5), [Disconnect()]), (Ping(), [Pong(), Disconnect()])):
        end = PortalEnd.outlet(ping)
        end.abort()
        assert said(end) == expected
        assert state_of(end) is State.CLOSED


def test_late_answer_of_an_outlet_gets_a_disconnect() -> None:
    end = PortalEnd.inlet()
    end.abort()
    assert said(end) == [Ping(portal.WINDOW)]
    assert state_of(end) is State.ABANDONED
    end.receive(Pong(5))
    assert said(end) == [Disconnect()]
    assert state_of(end) is State.CLOSED


def test_a_peer_without_credit_has_a_mebibyte_and_then_the_connection_ends() -> None:
    end = opened(window=None)
    for _ in range(MAX_UNPACED // 65_536):
        end.receive(Payload(bytes(65_536)))
    assert state_of(end) is State.OPEN
    end.written(100)
    end.receive(Payload(bytes(100)))
    assert state_of(end) is State.OPEN, "what the socket took has freed capacity"
    end.receive(Payload(b"!"))
    assert state_of(end) is State.CLOSED
    assert end.is_broken
    assert said(end) == [Disconnect()]


def test_a_peer_that_exceeds_its_window_is_disconnected() -> None:
    end = opened()
    end.receive(Payload(bytes(1000), 0))
    assert state_of(end) is State.OPEN
    end.receive(Payload(b"!", 1))
    assert state_of(end) is State.CLOSED
    assert said(end) == [Disconnect()]
    assert len(end.take()) == 1000


@pytest.mark.parametrize("counters", [[1], [0, 0], [0, 2]])
def test_a_payload_that_is_missing_or_comes_twice_ends_the_connection(counters: list[int]) -> None:
    for window in (1000, None):
        end = opened(window=window)
        for counter in counters:
            end.receive(Payload(b"x", counter))
        assert state_of(end) is State.CLOSED
        assert end.is_broken
        assert said(end) == [Disconnect()]


def test_end_of_input_before_all_data_breaks_the_connection() -> None:
    end = opened()
    end.receive(Payload(b"x", 0))
    end.receive(EndOfInput(2))
    assert state_of(end) is State.CLOSED
    assert end.is_broken


def test_payload_counters_wrap_around() -> None:
    end, peer = opened(window=2**40), PortalEnd.inlet(2**40)
    peer.receive(Pong(5))
    for _ in range(2**16 + 5):
        end.send(b"x")
    for message in said(end):
        peer.receive(message)
    assert state_of(peer) is State.OPEN
    assert peer.waiting == 2**16 + 5


def test_a_disconnect_between_our_own_nodes_says_that_the_connection_broke() -> None:
    end = opened()
    end.receive(Payload(b"part", 0))
    end.receive(Disconnect())
    assert end.take() == b"part"
    assert end.is_broken


def test_each_direction_ends_by_itself() -> None:
    end = opened()
    end.input_ended()
    assert said(end) == [EndOfInput(0)]
    assert state_of(end) is State.INPUT_ENDED
    assert end.sendable == 0
    end.receive(Payload(b"the whole answer", 0))
    end.receive(EndOfInput(16))
    assert state_of(end) is State.CLOSED
    assert end.take() == b"the whole answer"
    assert not end.is_broken


def test_credit_of_a_peer_never_shrinks() -> None:
    end = opened(window=10)
    assert end.sendable == 10
    end.receive(Credit(30))
    end.receive(Credit(20))
    assert end.sendable == 30
    end.send(bytes(25))
    assert end.sendable == 5
    end.receive(Credit(2**64 - 1))
    assert end.sendable == MAX_DATA


# -- two ends, and a carrier between them that keeps the order ---------------------------------------------------------


class Side:
    """One end with a socket that reads from `source` and writes to `sink`."""

    def __init__(self, end: PortalEnd, source: bytes) -> None:
        self.end = end
        self.source = source
        self.read = 0
        self.has_ended = False
        self.sink = bytearray()
        self.held = bytearray()
        self.path: deque[PortalMessage] = deque()

    def act(self, action: int, size: int) -> bool:
        """Do one action of a socket or a path; return whether there was anything to do."""
        end = self.end
        match action:
            case 0 if end.can_send and self.read < len(self.source) and end.sendable:
                data = self.source[self.read : self.read + min(size, end.sendable)]
                self.read += len(data)
                end.send(data)
            case 1 if end.can_send and self.read == len(self.source) and not self.has_ended:
                self.has_ended = True
                end.input_ended()
            case 2 if end.outgoing:
                self.path.append(end.outgoing.popleft())
            case 3 if self.held or end.waiting:
                self.held += end.take()
                self.sink += self.held[:size]
                end.written(len(self.held[:size]))
                del self.held[:size]
            case _:
                return False
        return True


@given(
    sources=st.tuples(st.binary(max_size=400), st.binary(max_size=400)),
    windows=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    steps=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(1, 60)), max_size=300),
)
def test_two_ends_carry_both_streams_whole_within_their_windows(
    sources: tuple[bytes, bytes], windows: tuple[int, int], steps: list[tuple[int, int, int]]
) -> None:
    inlet = PortalEnd.inlet(windows[0])
    (ping,) = said(inlet)
    assert isinstance(ping, Ping)
    outlet = PortalEnd.outlet(ping, windows[1])
    outlet.connected()
    sides = Side(inlet, sources[0]), Side(outlet, sources[1])

    def step(index: int, action: int, size: int) -> bool:
        side, other = sides[index], sides[1 - index]
        if action < 4:
            done = side.act(action, size)
        else:
            done = bool(other.path)
            if done:
                side.end.receive(other.path.popleft())
        for each, window in zip(sides, windows, strict=True):
            assert each.end.waiting <= window
            assert not each.end.is_broken
        return done

    for index, action, size in steps:
        step(index, action, size)
    # Whatever the order was: the ends continue until neither can act, and then all data have arrived.
    while any(step(index, action, 60) for index in (0, 1) for action in range(5)):
        pass
    for side, other in (sides, sides[::-1]):
        assert state_of(side.end) is State.CLOSED
        assert bytes(other.sink) == side.source
