"""Workers that ship with the library."""

from trionode.routing.mailbox import Mailbox


async def echoer(mailbox: Mailbox) -> None:
    """Send every message's payload back along its return route (spec §13.1)."""
    async for message in mailbox:
        await mailbox.reply(message, message.payload)


async def echo(mailbox: Mailbox) -> None:
    """Do the same for strangers, as on a hub: never wait for a link that doesn't take its answers, which is closed at its hard bound."""
    async for message in mailbox:
        mailbox.reply_nowait(message, message.payload)
