"""Each fault of the proxy really happens."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tests.faults.proxy import Proxy, open_proxy

#: Seconds after which nothing is expected to come any more.
QUIET = 0.2


async def _echo(stream: trio.SocketStream) -> None:
    async with stream:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def proxied() -> AsyncIterator[Proxy]:
    """A proxy before a server that echoes."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(partial(trio.serve_listeners, _echo, [listener]))
            async with open_proxy(f"tcp:127.0.0.1:{listener.socket.getsockname()[1]}", seed=1) as proxy:
                yield proxy
            nursery.cancel_scope.cancel()


async def connect(proxy: Proxy) -> trio.SocketStream:
    host, port = proxy.endpoint.removeprefix("tcp:").split(":")
    return await trio.open_tcp_stream(host, int(port))


async def receive(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        assert more
        data += more
    return data


async def is_silent(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(QUIET) as scope:
        await stream.receive_some(1)
    return scope.cancelled_caught


async def test_without_a_fault_all_bytes_and_the_end_pass() -> None:
    data = bytes(range(256)) * 4096
    async with proxied() as proxy, await connect(proxy) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        assert await receive(stream, len(data)) == data
        await stream.send_eof()
        assert await stream.receive_some(1) == b""
        assert (proxy.accepted, proxy.corrupted, proxy.swallowed) == (1, 0, 0)
        assert proxy.passed == 2 * len(data)


async def test_delay_delays_each_chunk_and_keeps_the_order() -> None:
    async with proxied() as proxy, await connect(proxy) as stream:
        proxy.delay = 0.1
        began = trio.current_time()
        for number in range(10):
            await stream.send_all(b"%d" % number)
        assert await receive(stream, 10) == b"0123456789"
        assert trio.current_time() - began >= 2 * proxy.delay


async def test_cut_ends_each_connection_and_the_next_one_works() -> None:
    async with proxied() as proxy, await connect(proxy) as stream:
        await stream.send_all(b"a")
        assert await receive(stream, 1) == b"a"
        proxy.cut()
        assert await stream.receive_some(1) == b""
        async with await connect(proxy) as another:
            await another.send_all(b"b")
            assert await receive(another, 1) == b"b"


async def test_reset_resets_each_connection() -> None:
    async with proxied() as proxy, await connect(proxy) as stream:
        await stream.send_all(b"a")
        assert await receive(stream, 1) == b"a"
        proxy.reset()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some(1)
        assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_what_is_held_back_passes_later_in_order() -> None:
    async with proxied() as proxy, await connect(proxy) as stream:
        proxy.hold()
        await stream.send_all(b"abc")
        assert await is_silent(stream)
        proxy.release()
        await stream.send_all(b"def")
        assert await receive(stream, 6) == b"abcdef"


async def test_half_open_connections_are_accepted_and_never_answered_nor_ended() -> None:
    async with proxied() as proxy, await connect(proxy) as old:
        await old.send_all(b"a")
        assert await receive(old, 1) == b"a"
        proxy.half_open()
        async with await connect(proxy) as new:
            for stream in (old, new):
                await stream.send_all(b"lost")
                assert await is_silent(stream)
            assert proxy.swallowed == 8
            proxy.heal()
            for stream in (old, new):
                await stream.send_all(b"lost")
                assert await is_silent(stream)
        async with await connect(proxy) as healed:
            await healed.send_all(b"b")
            assert await receive(healed, 1) == b"b"


async def test_corruption_flips_one_bit_in_as_many_chunks_as_asked() -> None:
    async with proxied() as proxy, await connect(proxy) as stream:
        proxy.chunks_to_corrupt = 1
        await stream.send_all(bytes(100))
        changed = await receive(stream, 100)
        assert sum(byte.bit_count() for byte in changed) == 1
        await stream.send_all(bytes(100))
        assert await receive(stream, 100) == bytes(100)
        assert proxy.corrupted == 1


async def test_a_lost_answer_is_lost_and_the_next_one_comes() -> None:
    async with proxied() as proxy, await connect(proxy) as stream:
        proxy.answers_to_lose = 1
        await stream.send_all(b"lost")
        assert await is_silent(stream)
        await stream.send_all(b"comes")
        assert await receive(stream, 5) == b"comes"
        assert proxy.swallowed == 4


async def test_a_target_that_does_not_run_resets_the_client() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with open_proxy(f"tcp:127.0.0.1:{port}") as proxy, await connect(proxy) as stream:
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(10):
            await stream.receive_some(1)
