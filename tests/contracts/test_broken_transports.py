"""Every check of the transport contract can fail: for each there is a transport that breaks just that promise."""

import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar, Never, cast

import attrs
import pytest
import trio
import trio.testing

from tests.support.failures import failures
from trionode.errors import ConnectionLost, LocalError, MessageTooLargeError, RemoteError
from trionode.net.transport import Link, Transport
from trionode.protocol.wire.current_codec import CURRENT
from trionode.testing import transport as contract
from trionode.testing.transport import (
    CHECKS,
    SMALL,
    Check,
    Harness,
    a_blocked_direction_blocks_nothing_else,
    a_broken_connection_leaves_whole_frames,
    a_cancelled_close_still_closes,
    a_cancelled_connect_leaves_no_link,
    a_cancelled_receive_loses_nothing,
    a_cancelled_serve_frees_its_address,
    a_link_can_be_closed_after_a_cancelled_send,
    a_link_still_receives_after_send_eof,
    a_slow_reader_blocks_the_sender,
    a_too_large_frame_is_refused_before_anything_is_sent,
    a_too_large_incoming_frame_ends_the_link,
    a_wait_ends_when_the_peer_disconnects,
    an_address_in_use_is_refused_and_free_again,
    an_empty_burst_sends_nothing,
    an_unreachable_address_is_connection_lost,
    both_ends_may_close_at_once_and_twice,
    closing_does_not_need_the_peer,
    every_wait_is_a_checkpoint,
    everything_sent_arrives_before_the_orderly_end,
    frames_arrive_whole_and_in_order_in_both_directions_at_once,
    links_describe_themselves,
    links_do_not_mix,
    links_outlive_their_listener,
    one_transport_serves_several_nodes,
    run_check,
    send_eof_may_be_repeated_late_or_cancelled,
    sending_to_a_peer_that_is_gone_fails,
    tasks_end_with_the_nursery,
    the_bound_address_works_in_a_route,
    the_largest_frame_arrives_whole,
    the_sender_may_reuse_its_list_and_frames_are_bytes,
)
from trionode_loopback import Loopback, LoopbackLink, Network, link_pair

Accept = Callable[[Link], Awaitable[None]]
Status = trio.TaskStatus[str]


class Through:
    """A link that does all as the loopback link inside; the broken ones do one thing otherwise."""

    def __init__(self, inner: LoopbackLink) -> None:
        self.inner = inner
        self.peer = inner.peer
        self.protocol_version = inner.protocol_version
        self.max_frame = inner.max_frame

    async def receive(self) -> Sequence[bytes]:
        return await self.inner.receive()

    async def send(self, frames: Sequence[bytes]) -> None:
        await self.inner.send(frames)

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        await self.inner.aclose()

    def put(self, frames: Sequence[bytes]) -> None:
        """Hand frames over past all rules."""
        self.inner._outgoing.put(frames, sum(map(len, frames)))

    def take(self) -> list[bytes]:
        """Take the queued frames, against the rules."""
        return [frame for burst in self.inner._incoming.take_all() for frame in burst]


class OverThrough(Loopback):
    """The loopback transport with other links, or other ways."""

    link: Callable[[LoopbackLink], Link] = Through

    def _around(self, link: Link) -> Link:
        assert isinstance(link, LoopbackLink)
        return type(self).link(link)

    async def connect(self, peer: str) -> Link:
        return self._around(await super().connect(peer))

    async def serve(self, at: str, accept: Accept, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> Never:
        async def accept_around(link: Link) -> None:
            await accept(self._around(link))

        await super().serve(at, accept_around, task_status=task_status)


# Links that break a promise


class HasNoPeer(Through):
    def __init__(self, inner: LoopbackLink) -> None:
        super().__init__(inner)
        self.peer = ""


class PromisesMoreThanItsWire(Through):
    def __init__(self, inner: LoopbackLink) -> None:
        super().__init__(inner)
        self.max_frame = self.protocol_version.max_sent + 1


class TurnsBurstsRound(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        await super().send(frames[::-1])


class CutsFramesIntoParts(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        await super().send([part for each in frames for part in (each[:65_536], each[65_536:]) if part])


class LosesTheLastByteOfTheLargest(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        await super().send([each[: self.max_frame - 1] for each in frames])


class SendsWhatIsTooLarge(Through):
    def __init__(self, inner: LoopbackLink) -> None:
        super().__init__(inner)
        self.max_frame = inner.max_frame // 2


class SendsUpToWhatIsTooLarge(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        for each in frames:
            await super().send([each])


class IsLostByWhatIsTooLarge(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        try:
            await super().send(frames)
        except MessageTooLargeError:
            await self.inner.aclose()
            raise


class DoesNotSayHowLarge(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        try:
            await super().send(frames)
        except MessageTooLargeError:
            raise MessageTooLargeError("too large") from None


class ReadsWhatIsTooLarge(Through):
    def __init__(self, inner: LoopbackLink) -> None:
        super().__init__(inner)
        inner.max_frame = CURRENT.max_frame


class EndsInOrderAtWhatIsTooLarge(Through):
    async def receive(self) -> Sequence[bytes]:
        try:
            return await super().receive()
        except RemoteError:
            return ()


class SendsEmptyBursts(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        if frames:
            await super().send(frames)
        else:
            self.put(())
            await trio.lowlevel.checkpoint()


class KeepsTheSendersList(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        self.put(frames)
        await trio.lowlevel.checkpoint()


class ChangesTheSendersList(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        await super().send(frames)
        cast(list[bytes], frames).clear()


class HandsOutItsBuffer(Through):
    async def receive(self) -> Sequence[bytes]:
        return cast(Sequence[bytes], [bytearray(each) for each in await super().receive()])


class DestroysWhatIsUnderWay(Through):
    async def aclose(self) -> None:
        self.inner._outgoing.discard()
        await super().aclose()


class GoesOnBehindItsEnd(Through):
    async def receive(self) -> Sequence[bytes]:
        frames = await super().receive()
        if not frames:
            self.inner._incoming._items.append(((b"from beyond",), 0))
        return frames


class HangsUpWhenItTellsItsEnd(Through):
    async def send_eof(self) -> None:
        await self.inner.aclose()


class TellsItsEndOnce(Through):
    async def send_eof(self) -> None:
        if self.inner._outgoing.is_closed:
            raise ConnectionLost("sent already")
        await super().send_eof()


class ClosesOnce(Through):
    async def aclose(self) -> None:
        if self.inner._outgoing.is_closed:
            raise trio.ClosedResourceError
        await super().aclose()


class WaitsForItsPeerToClose(Through):
    async def aclose(self) -> None:
        try:
            await self.send_eof()
            while await self.receive():
                pass
        finally:
            await self.inner.aclose()


class StaysOpenIfCancelled(Through):
    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        await super().aclose()


class SendsToNobody(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        with suppress(ConnectionLost):
            await super().send(frames)


class ForgetsWhatHadArrived(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        try:
            await super().send(frames)
        except ConnectionLost:
            self.take()
            raise


class ReceivesForEver(Through):
    async def receive(self) -> Sequence[bytes]:
        return await super().receive() or await trio.sleep_forever()


class SendsForEver(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        try:
            await super().send(frames)
        except ConnectionLost:
            await trio.sleep_forever()


class LeavesHalfAFrame(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        try:
            await super().send(frames)
        except trio.Cancelled:
            self.put([frames[0][:1000]])
            raise


class SendsTwiceWhatIsCancelled(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        try:
            await super().send(frames)
        except trio.Cancelled:
            self.put(frames)
            self.put(frames)
            raise


class TakesBeforeItWaits(Through):
    async def receive(self) -> Sequence[bytes]:
        if frames := self.take():
            await trio.lowlevel.checkpoint()
            return frames
        return await super().receive()


class WaitsAfterItTook(Through):
    async def receive(self) -> Sequence[bytes]:
        frames = await super().receive()
        await trio.lowlevel.checkpoint()
        return frames


class ReceivesWithoutACheckpoint(Through):
    async def receive(self) -> Sequence[bytes]:
        return self.take() or await super().receive()


class SendsWithoutACheckpoint(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        self.put(tuple(frames))


class HasNoBound(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        self.put(tuple(frames))
        await trio.lowlevel.checkpoint()


class DropsWhenItIsFull(Through):
    async def send(self, frames: Sequence[bytes]) -> None:
        if self.inner._outgoing.size <= self.inner._outgoing.bound:
            self.put(tuple(frames))
        await trio.lowlevel.checkpoint()


class DropsTheOldest(Through):
    async def receive(self) -> Sequence[bytes]:
        return (await super().receive())[-2:]


class GoesOneWayAtATime(Through):
    def __init__(self, inner: LoopbackLink) -> None:
        super().__init__(inner)
        self.lock = trio.Lock()

    async def send(self, frames: Sequence[bytes]) -> None:
        async with self.lock:
            await super().send(frames)

    async def receive(self) -> Sequence[bytes]:
        async with self.lock:
            return await super().receive()


class SendsOneAtATime(Through):
    lock: ClassVar = trio.Lock()

    async def send(self, frames: Sequence[bytes]) -> None:
        async with self.lock:
            await super().send(frames)


class HangsOnceItIsBroken(Through):
    broken = False

    async def send(self, frames: Sequence[bytes]) -> None:
        try:
            await super().send(frames)
        except trio.Cancelled:
            self.broken = True
            raise

    async def aclose(self) -> None:
        try:
            if self.broken:
                await trio.sleep_forever()
        finally:
            await super().aclose()


# Transports that break a promise


class HasNoName(Loopback):
    name: ClassVar[str] = "no name"


class AcceptsOneAtATime(Loopback):
    async def serve(self, at: str, accept: Accept, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> Never:
        lock = trio.Lock()

        async def accept_in_turn(link: Link) -> None:
            async with lock:
                await accept(link)

        await super().serve(at, accept_in_turn, task_status=task_status)


class ReportsWhatItWasAskedFor(Loopback):
    async def serve(self, at: str, accept: Accept, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> Never:
        @attrs.frozen
        class Asked:
            status: Status

            def started(self, value: str = "") -> None:
                self.status.started(at)

        await super().serve(at, accept, task_status=Asked(task_status))


class ReportsWhatNoRouteCanHold(Loopback):
    async def serve(self, at: str, accept: Accept, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> Never:
        await super().serve("a => b", accept, task_status=task_status)


class RaisesWhatTheSystemSays(Loopback):
    async def connect(self, peer: str) -> Link:
        try:
            return await super().connect(peer)
        except ConnectionLost as error:
            raise ConnectionRefusedError(str(error)) from error


class DoesNotSayWhere(Loopback):
    async def connect(self, peer: str) -> Link:
        try:
            return await super().connect(peer)
        except ConnectionLost:
            raise ConnectionLost("refused") from None


class ConnectsToNobody(Loopback):
    async def connect(self, peer: str) -> Link:
        try:
            return await super().connect(peer)
        except ConnectionLost:
            return link_pair("unreachable", peer)[0]


class LeavesWhatItMade(Loopback):
    async def connect(self, peer: str) -> Link:
        link = await super().connect(peer)
        await trio.lowlevel.checkpoint()
        return link


class ConnectsWithoutACheckpoint(Loopback):
    async def connect(self, peer: str) -> Link:
        with trio.CancelScope(shield=True):
            return await super().connect(peer)
        raise AssertionError


class TakesItsLinksWithIt(Loopback):
    async def serve(self, at: str, accept: Accept, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> Never:
        async def accept_and_close(link: Link) -> None:
            try:
                await accept(link)
            finally:
                with trio.CancelScope(shield=True):
                    await link.aclose()

        await super().serve(at, accept_and_close, task_status=task_status)


class TakesAPlaceTwice(Loopback):
    async def serve(self, at: str, accept: Accept, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> Never:
        if at in self.network.listeners:
            task_status.started(at)
            await trio.sleep_forever()
        await super().serve(at, accept, task_status=task_status)


class DoesNotSayWhatIsTaken(Loopback):
    async def serve(self, at: str, accept: Accept, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> Never:
        try:
            await super().serve(at, accept, task_status=task_status)
        except LocalError:
            raise LocalError("it is taken") from None


class NeverFreesAPlace(Loopback):
    class Places(dict[str, Any]):
        def __delitem__(self, key: str) -> None:
            pass

    def __init__(self, *, max_frame: int = CURRENT.max_frame, network: Network | None = None) -> None:
        super().__init__(max_frame=max_frame, network=Network(self.Places()))


class TakesAPlaceBeforeItWaits(Loopback):
    async def serve(self, at: str, accept: Accept, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> Never:
        if at in self.taken:
            raise LocalError(f"{at} is taken")
        self.taken.add(at)
        await trio.lowlevel.checkpoint()
        try:
            await super().serve(at, accept, task_status=task_status)
        finally:
            self.taken.remove(at)

    def __init__(self, *, max_frame: int = CURRENT.max_frame, network: Network | None = None) -> None:
        super().__init__(max_frame=max_frame, network=network)
        self.taken: set[str] = set()


class KeepsItsTasks(Loopback):
    def open(self, nursery: trio.Nursery) -> Transport:
        async def outlive() -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

        nursery.start_soon(outlive)
        return self


class KeepsOneNursery(Loopback):
    """What would be right for one node: the connections of all end with that of the last."""

    def open(self, nursery: trio.Nursery) -> Transport:
        nursery.start_soon(self._close_links)
        return self

    def __init__(self, *, max_frame: int = CURRENT.max_frame, network: Network | None = None) -> None:
        super().__init__(max_frame=max_frame, network=network)
        self.links: list[Link] = []

    async def _close_links(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for link in self.links:
                    await link.aclose()

    async def connect(self, peer: str) -> Link:
        link = await super().connect(peer)
        self.links.append(link)
        return link


class MixesItsLinks(Loopback):
    first: LoopbackLink | None = None

    async def connect(self, peer: str) -> Link:
        link = await super().connect(peer)
        assert isinstance(link, LoopbackLink)
        self.first = self.first or link
        link._outgoing = self.first._outgoing
        return link


def over(broken: type[Through]) -> type[Loopback]:
    return type(broken.__name__, (OverThrough,), {"link": broken})


#: What is broken, the check that finds it, and what that says.
BROKEN: tuple[tuple[type[Loopback], Check, str], ...] = (
    (HasNoName, links_describe_themselves, "a transport's name is an identifier"),
    (over(HasNoPeer), links_describe_themselves, "a text for logs"),
    (over(PromisesMoreThanItsWire), links_describe_themselves, "from 1 to its protocol version's max_sent"),
    (over(TurnsBurstsRound), frames_arrive_whole_and_in_order_in_both_directions_at_once, "whole and in order"),
    (over(CutsFramesIntoParts), frames_arrive_whole_and_in_order_in_both_directions_at_once, "whole and in order"),
    (over(DropsTheOldest), frames_arrive_whole_and_in_order_in_both_directions_at_once, "still waiting after"),
    (over(LosesTheLastByteOfTheLargest), the_largest_frame_arrives_whole, "whole and in order"),
    (over(SendsWhatIsTooLarge), a_too_large_frame_is_refused_before_anything_is_sent, "is refused with"),
    (over(SendsUpToWhatIsTooLarge), a_too_large_frame_is_refused_before_anything_is_sent, "in order.*b'small'"),
    (over(IsLostByWhatIsTooLarge), a_too_large_frame_is_refused_before_anything_is_sent, "ConnectionLost"),
    (over(DoesNotSayHowLarge), a_too_large_frame_is_refused_before_anything_is_sent, "names the largest frame"),
    (over(ReadsWhatIsTooLarge), a_too_large_incoming_frame_ends_the_link, "it got .*1001 bytes"),
    (over(EndsInOrderAtWhatIsTooLarge), a_too_large_incoming_frame_ends_the_link, r"it got \[\]"),
    (over(SendsEmptyBursts), an_empty_burst_sends_nothing, "an empty burst sends nothing"),
    (
        over(KeepsTheSendersList),
        the_sender_may_reuse_its_list_and_frames_are_bytes,
        "even if the sender changes its list",
    ),
    (over(ChangesTheSendersList), the_sender_may_reuse_its_list_and_frames_are_bytes, "does not change the list"),
    (over(HandsOutItsBuffer), the_sender_may_reuse_its_list_and_frames_are_bytes, "are bytes"),
    (over(DestroysWhatIsUnderWay), everything_sent_arrives_before_the_orderly_end, "the link ended after"),
    (over(GoesOnBehindItsEnd), everything_sent_arrives_before_the_orderly_end, "behind the last frame is the end"),
    (over(HangsUpWhenItTellsItsEnd), a_link_still_receives_after_send_eof, "ConnectionLost"),
    (over(TellsItsEndOnce), send_eof_may_be_repeated_late_or_cancelled, "ConnectionLost: sent already"),
    (over(ClosesOnce), both_ends_may_close_at_once_and_twice, "ClosedResourceError"),
    (over(WaitsForItsPeerToClose), closing_does_not_need_the_peer, "returns by itself within 3 s"),
    (over(StaysOpenIfCancelled), a_cancelled_close_still_closes, "has closed, and its peer sees the end"),
    (over(SendsToNobody), sending_to_a_peer_that_is_gone_fails, "has disconnected raises ConnectionLost"),
    (over(ForgetsWhatHadArrived), sending_to_a_peer_that_is_gone_fails, "the link ended after 0"),
    (over(ReceivesForEver), a_wait_ends_when_the_peer_disconnects, "a task that waits in _rest"),
    (over(SendsForEver), a_wait_ends_when_the_peer_disconnects, "a task that waits in send"),
    (over(LeavesHalfAFrame), a_broken_connection_leaves_whole_frames, "frames arrive whole, in order, and once"),
    (
        over(SendsTwiceWhatIsCancelled),
        a_broken_connection_leaves_whole_frames,
        "frames arrive whole, in order, and once",
    ),
    (over(GoesOnBehindItsEnd), a_broken_connection_leaves_whole_frames, "behind an end comes nothing"),
    (over(TakesBeforeItWaits), a_cancelled_receive_loses_nothing, "what a cancelled receive had taken|still waiting"),
    (over(WaitsAfterItTook), a_cancelled_receive_loses_nothing, "what a cancelled receive had taken"),
    (over(ReceivesWithoutACheckpoint), every_wait_is_a_checkpoint, "did not yield"),
    (over(SendsWithoutACheckpoint), every_wait_is_a_checkpoint, "did not yield"),
    (over(HasNoBound), a_slow_reader_blocks_the_sender, "send blocks while the peer does not read"),
    (over(DropsWhenItIsFull), a_slow_reader_blocks_the_sender, "send blocks while the peer does not read"),
    (over(DropsTheOldest), a_slow_reader_blocks_the_sender, "receives all frames, in order"),
    (over(GoesOneWayAtATime), a_blocked_direction_blocks_nothing_else, "blocks nothing but itself"),
    (over(SendsOneAtATime), a_blocked_direction_blocks_nothing_else, "blocks nothing but itself"),
    (over(HangsOnceItIsBroken), a_link_can_be_closed_after_a_cancelled_send, "can be closed within 3 s"),
    (
        over(LeavesHalfAFrame),
        a_link_can_be_closed_after_a_cancelled_send,
        "frames arrive whole, in order, and once",
    ),
    (MixesItsLinks, links_do_not_mix, "whole and in order"),
    (AcceptsOneAtATime, links_do_not_mix, "still waiting after"),
    (
        ReportsWhatItWasAskedFor,
        the_bound_address_works_in_a_route,
        "ConnectionLost: nothing listens",
    ),
    (ReportsWhatNoRouteCanHold, the_bound_address_works_in_a_route, "written in a route"),
    (RaisesWhatTheSystemSays, an_unreachable_address_is_connection_lost, "ConnectionRefusedError"),
    (DoesNotSayWhere, an_unreachable_address_is_connection_lost, "names the address"),
    (ConnectsToNobody, an_unreachable_address_is_connection_lost, "where nothing listens raises"),
    (LeavesWhatItMade, a_cancelled_connect_leaves_no_link, "leaves no link open"),
    (ConnectsWithoutACheckpoint, a_cancelled_connect_leaves_no_link, "connect is a checkpoint"),
    (TakesItsLinksWithIt, links_outlive_their_listener, "ConnectionLost"),
    (TakesAPlaceBeforeItWaits, a_cancelled_serve_frees_its_address, "is taken"),
    (
        TakesAPlaceTwice,
        an_address_in_use_is_refused_and_free_again,
        "a second listener at one address raises LocalError",
    ),
    (DoesNotSayWhatIsTaken, an_address_in_use_is_refused_and_free_again, "names the address"),
    (NeverFreesAPlace, an_address_in_use_is_refused_and_free_again, "where nothing listens raises"),
    (KeepsItsTasks, tasks_end_with_the_nursery, "tasks end within 3 s"),
    (KeepsOneNursery, one_transport_serves_several_nodes, "ConnectionLost"),
)


@pytest.fixture(autouse=True)
def _no_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "QUIET", 0)  # nothing is under way in a kernel: who is blocked is so at once


def harness(of: type[Loopback]) -> Harness:
    network = Network()
    return Harness(of(network=network), "hub:0", "unreachable", of(max_frame=SMALL, network=network))


@pytest.mark.parametrize(("broken", "check", "says"), BROKEN, ids=lambda each: getattr(each, "__name__", ""))
async def test_a_broken_transport_is_found(
    broken: type[Loopback], check: Check, says: str, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises((Exception, ExceptionGroup)) as caught:
        await run_check(check, harness(broken))
    assert any(re.search(says, failure) for failure in failures(caught.value)), list(failures(caught.value))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_wrapped_transport_passes(check: Check, autojump_clock: trio.testing.MockClock) -> None:
    await run_check(check, harness(OverThrough))


async def test_a_transport_for_small_frames_must_have_a_small_limit(autojump_clock: trio.testing.MockClock) -> None:
    network = Network()
    small = Loopback(max_frame=2000, network=network)
    says = pytest.RaisesExc(AssertionError, match=r"at most SMALL \(1000\) bytes; this one reads 2000")
    with pytest.RaisesGroup(says, flatten_subgroups=True):
        await run_check(
            a_too_large_incoming_frame_ends_the_link,
            Harness(Loopback(network=network), "hub:0", "unreachable", small),
        )


def test_every_check_has_a_transport_that_breaks_it() -> None:
    assert {check for _, check, _ in BROKEN} == set(CHECKS)
    assert len(set(CHECKS)) == len(CHECKS)


class LeavesATask(Loopback):
    async def connect(self, peer: str) -> Link:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)
        return await super().connect(peer)


class LeavesAFile(Loopback):
    left: ClassVar[list[IO[str]]] = []

    async def connect(self, peer: str) -> Link:
        self.left.append(Path("/dev/null").open())  # noqa: ASYNC230, SIM115  # that is what is broken
        return await super().connect(peer)


class LeavesAThread(Loopback):
    over: ClassVar = threading.Event()

    async def connect(self, peer: str) -> Link:
        threading.Thread(target=self.over.wait, name="left").start()
        return await super().connect(peer)


@pytest.mark.leak_gate(False)  # what it leaves behind is what is looked for here, by another
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (LeavesATask, "1 tasks are left"),
        (LeavesAFile, "1 open files are left"),
        (LeavesAThread, "are left behind: left"),
    ],
)
async def test_a_leaking_transport_is_found(
    broken: type[Loopback], says: str, autojump_clock: trio.testing.MockClock
) -> None:
    LeavesAThread.over.clear()
    try:
        with pytest.raises(AssertionError, match=says):
            await run_check(a_link_still_receives_after_send_eof, harness(broken))
    finally:
        LeavesAThread.over.set()
        for file in LeavesAFile.left:
            file.close()
