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
from trionode.net.transport import Link
from trionode.protocol.wire.current_codec import CURRENT
from trionode.testing import transport as contract
from trionode.testing.transport import (
    CHECKS,
    SMALL,
    Check,
    Ground,
    a_burst_stays_its_senders_and_frames_are_bytes,
    a_cancelled_close_still_closes,
    a_cancelled_connect_leaves_no_link,
    a_cancelled_receive_takes_nothing,
    a_cancelled_send_to_a_clogged_peer_can_be_closed,
    a_cancelled_serve_leaves_its_place_free,
    a_clogged_direction_holds_up_nothing_else,
    a_clogged_peer_blocks_the_sender_until_it_reads,
    a_frame_that_is_too_large_is_refused_before_anything_is_sent,
    a_frame_that_is_too_large_to_read_ends_the_link,
    a_link_receives_on_after_it_sent_its_end,
    a_peer_that_vanishes_leaves_whole_frames,
    a_place_is_taken_once_and_free_again,
    a_wait_ends_when_the_peer_goes,
    all_that_was_sent_arrives_before_the_orderly_end,
    an_empty_burst_sends_nothing_and_ends_nothing,
    an_end_may_be_told_twice_in_vain_and_cancelled,
    both_ends_may_close_at_once_and_twice,
    closing_needs_no_peer_that_listens,
    every_wait_is_a_checkpoint,
    frames_arrive_whole_and_in_order_in_both_directions_at_once,
    links_do_not_mix,
    links_outlive_their_listener,
    links_say_what_they_are,
    nobody_there_is_a_lost_link,
    run_check,
    sending_to_a_peer_that_is_gone_fails,
    the_bound_address_can_be_dialled_and_written_in_a_route,
    the_largest_frame_arrives_whole,
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
        """Take what waits, past all rules."""
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
            raise ConnectionLost("told already")
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
            return link_pair("nobody", peer)[0]


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
    (HasNoName, links_say_what_they_are, "a transport's name is an identifier"),
    (over(HasNoPeer), links_say_what_they_are, "a text for logs"),
    (over(PromisesMoreThanItsWire), links_say_what_they_are, "from 1 to its wire's max_sent"),
    (over(TurnsBurstsRound), frames_arrive_whole_and_in_order_in_both_directions_at_once, "whole and in order"),
    (over(CutsFramesIntoParts), frames_arrive_whole_and_in_order_in_both_directions_at_once, "whole and in order"),
    (over(DropsTheOldest), frames_arrive_whole_and_in_order_in_both_directions_at_once, "still waiting after"),
    (over(LosesTheLastByteOfTheLargest), the_largest_frame_arrives_whole, "whole and in order"),
    (over(SendsWhatIsTooLarge), a_frame_that_is_too_large_is_refused_before_anything_is_sent, "is refused with"),
    (over(SendsUpToWhatIsTooLarge), a_frame_that_is_too_large_is_refused_before_anything_is_sent, "in order.*b'small'"),
    (over(IsLostByWhatIsTooLarge), a_frame_that_is_too_large_is_refused_before_anything_is_sent, "ConnectionLost"),
    (over(DoesNotSayHowLarge), a_frame_that_is_too_large_is_refused_before_anything_is_sent, "names the largest frame"),
    (over(ReadsWhatIsTooLarge), a_frame_that_is_too_large_to_read_ends_the_link, "it got .*1001 bytes"),
    (over(EndsInOrderAtWhatIsTooLarge), a_frame_that_is_too_large_to_read_ends_the_link, r"it got \[\]"),
    (over(SendsEmptyBursts), an_empty_burst_sends_nothing_and_ends_nothing, "an empty burst sends nothing"),
    (over(KeepsTheSendersList), a_burst_stays_its_senders_and_frames_are_bytes, "whatever its sender does"),
    (over(ChangesTheSendersList), a_burst_stays_its_senders_and_frames_are_bytes, "leaves the list"),
    (over(HandsOutItsBuffer), a_burst_stays_its_senders_and_frames_are_bytes, "are bytes"),
    (over(DestroysWhatIsUnderWay), all_that_was_sent_arrives_before_the_orderly_end, "the link ended after"),
    (over(GoesOnBehindItsEnd), all_that_was_sent_arrives_before_the_orderly_end, "behind the last frame is the end"),
    (over(HangsUpWhenItTellsItsEnd), a_link_receives_on_after_it_sent_its_end, "ConnectionLost"),
    (over(TellsItsEndOnce), an_end_may_be_told_twice_in_vain_and_cancelled, "ConnectionLost: told already"),
    (over(ClosesOnce), both_ends_may_close_at_once_and_twice, "ClosedResourceError"),
    (over(WaitsForItsPeerToClose), closing_needs_no_peer_that_listens, "returns by itself within 3 s"),
    (over(StaysOpenIfCancelled), a_cancelled_close_still_closes, "has closed, and its peer sees the end"),
    (over(SendsToNobody), sending_to_a_peer_that_is_gone_fails, "is gone raises ConnectionLost"),
    (over(ForgetsWhatHadArrived), sending_to_a_peer_that_is_gone_fails, "the link ended after 0"),
    (over(ReceivesForEver), a_wait_ends_when_the_peer_goes, "who waits in _rest"),
    (over(SendsForEver), a_wait_ends_when_the_peer_goes, "who waits in send"),
    (over(LeavesHalfAFrame), a_peer_that_vanishes_leaves_whole_frames, "frames arrive whole, in order, and once"),
    (
        over(SendsTwiceWhatIsCancelled),
        a_peer_that_vanishes_leaves_whole_frames,
        "frames arrive whole, in order, and once",
    ),
    (over(GoesOnBehindItsEnd), a_peer_that_vanishes_leaves_whole_frames, "behind an end comes nothing"),
    (over(TakesBeforeItWaits), a_cancelled_receive_takes_nothing, "comes with the next|still waiting"),
    (over(WaitsAfterItTook), a_cancelled_receive_takes_nothing, "comes with the next"),
    (over(ReceivesWithoutACheckpoint), every_wait_is_a_checkpoint, "did not yield"),
    (over(SendsWithoutACheckpoint), every_wait_is_a_checkpoint, "did not yield"),
    (over(HasNoBound), a_clogged_peer_blocks_the_sender_until_it_reads, "not sent to without end"),
    (over(DropsWhenItIsFull), a_clogged_peer_blocks_the_sender_until_it_reads, "not sent to without end"),
    (over(DropsTheOldest), a_clogged_peer_blocks_the_sender_until_it_reads, "reads all frames, in order"),
    (over(GoesOneWayAtATime), a_clogged_direction_holds_up_nothing_else, "holds up nothing but itself"),
    (over(SendsOneAtATime), a_clogged_direction_holds_up_nothing_else, "holds up nothing but itself"),
    (over(HangsOnceItIsBroken), a_cancelled_send_to_a_clogged_peer_can_be_closed, "can be closed within 3 s"),
    (
        over(LeavesHalfAFrame),
        a_cancelled_send_to_a_clogged_peer_can_be_closed,
        "frames arrive whole, in order, and once",
    ),
    (MixesItsLinks, links_do_not_mix, "whole and in order"),
    (AcceptsOneAtATime, links_do_not_mix, "still waiting after"),
    (
        ReportsWhatItWasAskedFor,
        the_bound_address_can_be_dialled_and_written_in_a_route,
        "ConnectionLost: nobody listens",
    ),
    (ReportsWhatNoRouteCanHold, the_bound_address_can_be_dialled_and_written_in_a_route, "written in a route"),
    (RaisesWhatTheSystemSays, nobody_there_is_a_lost_link, "ConnectionRefusedError"),
    (DoesNotSayWhere, nobody_there_is_a_lost_link, "names the place"),
    (ConnectsToNobody, nobody_there_is_a_lost_link, "where nobody listens raises"),
    (LeavesWhatItMade, a_cancelled_connect_leaves_no_link, "leaves no link open"),
    (ConnectsWithoutACheckpoint, a_cancelled_connect_leaves_no_link, "connect is a checkpoint"),
    (TakesItsLinksWithIt, links_outlive_their_listener, "ConnectionLost"),
    (TakesAPlaceBeforeItWaits, a_cancelled_serve_leaves_its_place_free, "is taken"),
    (TakesAPlaceTwice, a_place_is_taken_once_and_free_again, "a second listener at one place raises LocalError"),
    (DoesNotSayWhatIsTaken, a_place_is_taken_once_and_free_again, "names the place"),
    (NeverFreesAPlace, a_place_is_taken_once_and_free_again, "where nobody listens raises"),
)


@pytest.fixture(autouse=True)
def _no_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "QUIET", 0)  # nothing is under way in a kernel: who is blocked is so at once


def ground(of: type[Loopback]) -> Ground:
    network = Network()
    return Ground(of(network=network), "hub:0", "nobody", of(max_frame=SMALL, network=network))


@pytest.mark.parametrize(("broken", "check", "says"), BROKEN, ids=lambda each: getattr(each, "__name__", ""))
async def test_a_broken_transport_is_found(
    broken: type[Loopback], check: Check, says: str, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises((Exception, ExceptionGroup)) as caught:
        await run_check(check, ground(broken))
    assert any(re.search(says, failure) for failure in failures(caught.value)), list(failures(caught.value))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_transport_that_is_only_wrapped_is_not(check: Check, autojump_clock: trio.testing.MockClock) -> None:
    await run_check(check, ground(OverThrough))


async def test_a_small_transport_that_is_not_small_enough_is_told_so(autojump_clock: trio.testing.MockClock) -> None:
    network = Network()
    small = Loopback(max_frame=2000, network=network)
    says = pytest.RaisesExc(AssertionError, match=r"at most SMALL \(1000\) bytes; this one reads 2000")
    with pytest.RaisesGroup(says, flatten_subgroups=True):
        await run_check(
            a_frame_that_is_too_large_to_read_ends_the_link,
            Ground(Loopback(network=network), "hub:0", "nobody", small),
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
async def test_a_transport_that_leaves_something_behind_is_found(
    broken: type[Loopback], says: str, autojump_clock: trio.testing.MockClock
) -> None:
    LeavesAThread.over.clear()
    try:
        with pytest.raises(AssertionError, match=says):
            await run_check(a_link_receives_on_after_it_sent_its_end, ground(broken))
    finally:
        LeavesAThread.over.set()
        for file in LeavesAFile.left:
            file.close()
