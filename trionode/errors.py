"""The errors of trionode: RemoteError is a peer's fault, LocalError is a mistake of this program."""


class TrionodeError(Exception):
    """The base class of every error that trionode raises on purpose."""


class RemoteError(TrionodeError):
    """A peer broke the protocol, failed to authenticate, or disconnected.

    It ends one link, channel or stream. The node and its other connections continue.
    """


class WireError(RemoteError):
    """A peer sent bytes that the wire specification does not allow."""


class UndecodableText(WireError):
    """The payload of a message is no text, and the program asked for its text.

    If it leaves a worker, the message is dropped and counted, and the worker is called again.
    """


class DecryptError(RemoteError):
    """An encrypted message has a wrong tag, a wrong or used nonce, or an unknown key.

    The channel's state is unchanged.
    """


class HandshakeError(RemoteError):
    """A handshake message or the identity in it is not valid, or the trust policy refused the identity."""


class IdentityRefused(HandshakeError):
    """The peer refuses this side's identity: its trust policy says no."""


class IdentityError(RemoteError):
    """A change history, attestation, credential or identifier is not valid, or contradicts a known one."""


class ConnectionLost(RemoteError):
    """The connection to a peer could not be opened, or it has ended."""


class AnswerTimeout(RemoteError):
    """No answer came before the deadline. A peer that refuses a request also stays silent."""


class ServiceError(RemoteError):
    """A stream, store or other service answered that it could not fulfil a request."""


class Undelivered(RemoteError):
    """Messages that were accepted have not been acknowledged by their receiver, or confirmed by a hub.

    Some of them may have arrived: only their acknowledgement is missing.

    Args:
      count: How many.
      text: What happened, and what to do.
    """

    def __init__(self, count: int, text: str) -> None:
        super().__init__(text)
        #: The number of messages.
        self.count = count


class LocalError(TrionodeError):
    """This program used the interface in a way that is not allowed."""


class ConfigError(LocalError):
    """An argument, option, address or setting has a value that is not allowed. The text says which values are."""


class UnknownAddressError(LocalError):
    """The first address of a route does not exist on this node."""


class AddressInUseError(LocalError):
    """The address is already in use on this node."""


class MessageTooLargeError(LocalError):
    """The message is larger than the link or stream can carry."""


class ClosedError(LocalError):
    """This program has closed the node, channel or stream already."""


class VaultError(LocalError):
    """The vault can't be opened, or it does not hold the key."""
