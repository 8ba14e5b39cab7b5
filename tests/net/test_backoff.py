"""The delays between tries, and the loop that connects again."""

from itertools import pairwise

import pytest
import trio
import trio.testing

from trionode.errors import ConfigError, ConnectionLost, RemoteError, UnknownAddressError
from trionode.net.backoff import FIRST_DELAY, LONGEST_DELAY, STEADY_SECONDS, Backoff, reconnect


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0, jitter=0.0)
    assert [backoff.failed() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.failures == 5


def test_a_reset_begins_with_the_first_delay() -> None:
    backoff = Backoff(0.5, 3.0, jitter=0.0)
    backoff.failed()
    backoff.failed()
    backoff.reset()
    assert backoff.failed() == 0.5


def test_jitter_only_shortens_delays() -> None:
    delays = [Backoff(1.0, 1.0, jitter=0.5).failed() for _ in range(200)]
    assert all(0.5 <= delay <= 1.0 for delay in delays)
    assert len(set(delays)) > 100


def test_with_several_peers_delays_double_once_a_round() -> None:
    backoff = Backoff(1.0, 8.0, jitter=0.0, peers=2)
    assert [backoff.failed() for _ in range(6)] == [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


def test_only_a_steady_connection_resets_delays() -> None:
    backoff = Backoff(0.5, 8.0, jitter=0.0)
    assert backoff.ended(STEADY_SECONDS / 2) == 0.5
    assert backoff.ended(STEADY_SECONDS / 2) == 1.0
    assert backoff.ended(STEADY_SECONDS) == 0.5


def test_very_many_failures_keep_the_longest_delay() -> None:
    backoff = Backoff(jitter=0.0)
    delays = [backoff.failed() for _ in range(5000)]
    assert delays[0] == FIRST_DELAY
    assert delays[-1] == LONGEST_DELAY
    assert all(earlier <= later for earlier, later in pairwise(delays))


async def test_reconnect_tries_until_stopped(autojump_clock: trio.testing.MockClock) -> None:
    errors: list[Exception] = []
    delays: list[float] = []

    async def connect() -> None:
        raise ConnectionLost("away") if len(errors) < 2 else UnknownAddressError("no such address")

    async def use(connection: None) -> bool:
        raise AssertionError

    def failed(error: RemoteError | UnknownAddressError, delay: float) -> bool:
        errors.append(error)
        delays.append(delay)
        return len(errors) < 4

    began = trio.current_time()
    await reconnect(connect, use, failed, Backoff(1.0, 8.0, jitter=0.0))
    assert [type(error) for error in errors] == [ConnectionLost] * 2 + [UnknownAddressError] * 2
    assert delays == [1.0, 2.0, 4.0, 8.0]
    assert trio.current_time() - began == pytest.approx(7.0)


async def test_reconnect_waits_longer_for_a_peer_that_closes_connections_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    connected: list[float] = []

    async def connect() -> float:
        if len(connected) == 5:
            raise ConfigError("enough")
        connected.append(trio.current_time())
        return connected[-1]

    async def use(connection: float) -> bool:
        await trio.sleep(2 * STEADY_SECONDS)
        return len(connected) >= 4  # the first three connections are silent

    with pytest.raises(ConfigError, match="enough"):
        await reconnect(connect, use, lambda error, delay: True, Backoff(1.0, 8.0, jitter=0.0))
    pauses = [later - earlier - 2 * STEADY_SECONDS for earlier, later in pairwise(connected)]
    assert pauses == pytest.approx([1.0, 2.0, 4.0, 1.0])
