"""A Trio program with its own purpose, a thermometer, and a trionode node that answers with the temperature.

`python inside_trio.py [ENDPOINT]`; then, elsewhere: `await node.ask(Route(channel, "thermometer"), "")`.
"""

import sys

import trio

from trionode import Identity, Mailbox, open_node, trust_everyone


class Thermometer:
    """The program's own purpose, which knows nothing of nodes."""

    def __init__(self) -> None:
        self.degrees = 20.0

    async def measure(self) -> None:
        while True:
            self.degrees += 0.1
            await trio.sleep(1)


async def main(endpoint: str, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    thermometer = Thermometer()

    async def answer(mailbox: Mailbox) -> None:
        async for message in mailbox:
            await mailbox.reply(message, f"{thermometer.degrees:.1f} °C")

    async with trio.open_nursery() as nursery, open_node("tcp", "loopback") as node:
        nursery.start_soon(thermometer.measure)
        await node.serve_secure_channels("api", await Identity.create(node.vault), trust=trust_everyone)
        await node.start_worker("thermometer", answer)
        at = await node.listen(endpoint)
        print(f"listening on {at}", flush=True)
        task_status.started(str(at))
        await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tcp:127.0.0.1:4000")
    except* KeyboardInterrupt:
        pass
