"""Workers that pass on what they get, by the routes of their `sends` in a topology: to all of them, or to one after the other."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice

from trionode import ConnectionLost, Mailbox, Route, UnknownAddressError, sanitize

#: The route as it is now; ConnectionLost where it begins with something that is being opened again.
Live = Callable[[], Route]


async def fan_out(mailbox: Mailbox, *, sends: Sequence[Live]) -> None:
    """Send a copy to everyone who is there."""
    async for message in mailbox:
        for route in sends:
            try:
                await mailbox.send(route(), message.payload)
            except (ConnectionLost, UnknownAddressError) as error:
                print(f"one has missed a message: {error}", flush=True)


async def balance(mailbox: Mailbox, *, sends: Sequence[Live]) -> None:
    """Give each message to the next one in turn who is there."""
    turns = cycle(sends)
    async for message in mailbox:
        for route in islice(turns, len(sends)):
            try:
                await mailbox.send(route(), message.payload)
                break
            except (ConnectionLost, UnknownAddressError):
                continue  # he is away
        else:
            print("nobody was there to take a message", flush=True)


async def show(mailbox: Mailbox, *, name: str) -> None:
    """Print what comes."""
    async for message in mailbox:
        print(f"{name}: {sanitize(message.text)}", flush=True)
