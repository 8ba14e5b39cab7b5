"""An asyncio program that greets its clients, with a trionode node that answers how many came.

Trio runs as a guest of the asyncio loop.

`python inside_asyncio.py [PORT [ENDPOINT]]`; then, elsewhere: `await node.ask(Route("tcp:127.0.0.1:4000", "visits"), "")`.
"""

import asyncio
import sys
from contextlib import suppress

import outcome
import trio

from trionode import Mailbox, from_anywhere, open_node


class Greeter:
    """The program's own purpose, which knows nothing of nodes."""

    def __init__(self) -> None:
        self.visits = 0

    async def greet(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.write(b"hello\n")
        writer.close()
        await writer.wait_closed()


async def node_of(greeter: Greeter, endpoint: str, stopping: trio.CancelScope) -> None:
    async def answer(mailbox: Mailbox) -> None:
        async for message in mailbox:
            mailbox.reply_nowait(message, str(greeter.visits).encode())

    with stopping:
        async with open_node("tcp") as node:
            await node.start_worker("visits", answer, allow=from_anywhere)
            print(f"the node is listening on {await node.listen(endpoint)}", flush=True)
            await trio.sleep_forever()


async def main(port: int, endpoint: str) -> None:
    greeter, loop, stopping = Greeter(), asyncio.get_running_loop(), trio.CancelScope()
    server = await asyncio.start_server(greeter.greet, "127.0.0.1", port)
    print(f"greeting at {server.sockets[0].getsockname()[1]}", flush=True)
    ended: asyncio.Future[outcome.Outcome[None]] = loop.create_future()
    trio.lowlevel.start_guest_run(
        node_of,
        greeter,
        endpoint,
        stopping,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        done_callback=ended.set_result,
    )
    inside = trio.lowlevel.current_trio_token()
    try:
        await asyncio.wait([ended])
    finally:  # Ctrl-C cancels this task, and the guest must end, too
        inside.run_sync_soon(stopping.cancel)
        await asyncio.wait([ended])
    ended.result().unwrap()


if __name__ == "__main__":
    endpoints = sys.argv[1:]
    with suppress(KeyboardInterrupt):
        asyncio.run(
            main(int(endpoints[0]) if endpoints else 4001, endpoints[1] if endpoints[1:] else "tcp:127.0.0.1:4000")
        )
