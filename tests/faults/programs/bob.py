"""Bob: handles each number by a row in a database, and answers with the number. Arguments: folder, Alice, hubs."""

import os
import sys
import time
from pathlib import Path

import trio

from tests.faults.programs.notes import open_handled
from tests.faults.programs.party import open_party, open_their_stream
from trionode import Mailbox, trust_only


async def main(folder: Path, alice: str, hubs: list[str]) -> None:
    """Serve until killed."""
    with open_handled(folder / "handled.db") as database:

        async def handle(mailbox: Mailbox) -> None:
            async for message in mailbox:
                number = int(message.payload)
                database.execute("INSERT INTO handled VALUES (?, ?)", (number, time.monotonic()))
                os.write(1, b"%d\n" % number)  # the driver counts
                await mailbox.reply(message, message.payload)

        async with open_party(folder / "bob.vault") as (node, identity):
            await node.start_worker("numbers", handle)
            await node.serve_secure_channels("listener", identity, trust=trust_only(alice))
            await open_their_stream(node, hubs, sends="bob_to_alice", receives="alice_to_bob", client_id="bob")
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
