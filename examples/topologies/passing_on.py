"""Workers that forward messages over the routes of their `sends`: to all of them, or to one after the other."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice

from trionode import ConnectionLost, Mailbox, Route, UnknownAddressError, sanitize

#: Returns the current route; raises ConnectionLost while its channel or stream is being opened again.
CurrentRoute = Callable[[], Route]


async def fan_out(mailbox: Mailbox, *, sends: Sequence[CurrentRoute]) -> None:
    """Send a copy to every route that is open."""
    async for message in mailbox:
        for route in sends:
            try:
                await mailbox.send(route(), message.payload)
            except (ConnectionLost, UnknownAddressError) as error:
                print(f"one route missed a message: {error}", flush=True)


async def balance(mailbox: Mailbox, *, sends: Sequence[CurrentRoute]) -> None:
    """Send each message to the next route in turn that is open."""
    turns = cycle(sends)
    async for message in mailbox:
        for route in islice(turns, len(sends)):
            try:
                await mailbox.send(route(), message.payload)
                break
            except (ConnectionLost, UnknownAddressError):
                continue  # try the next route
        else:
            print("no route was open for a message", flush=True)


async def show(mailbox: Mailbox, *, name: str) -> None:
    """Print every message."""
    async for message in mailbox:
        print(f"{name}: {sanitize(message.text)}", flush=True)
