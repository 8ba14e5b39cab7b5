"""Workers that the library ships."""

from trionode.routing.mailbox import Mailbox

__all__ = ["echo", "echoer"]


async def echoer(mailbox: Mailbox) -> None:
    """Send the payload of each message back along its return route (spec §13.1).

    Args:
      mailbox: The worker's mailbox.

    If cancelled, the reply of the current message may be missing.
    """
    async for message in mailbox:
        await mailbox.reply(message, message.payload)


async def echo(mailbox: Mailbox) -> None:
    """Echo to unauthenticated peers, as a hub does: never wait for a link whose peer does not read.

    Such a link is closed at its hard bound.

    Args:
      mailbox: The worker's mailbox.

    If cancelled, it stops between two messages.
    """
    async for message in mailbox:
        mailbox.reply_nowait(message, message.payload)
