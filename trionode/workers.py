"""Workers that ship with the library."""

from trionode.mailbox import Mailbox


async def echoer(mailbox: Mailbox) -> None:
    """Send every message's payload back along its return route (spec §13.1)."""
    async for message in mailbox:
        await mailbox.reply(message, message.payload)
