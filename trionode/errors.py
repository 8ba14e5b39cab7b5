"""Who broke a rule: a remote (RemoteError ends one link or channel) or this program (LocalError rises at the caller)."""


class TrionodeError(Exception):
    """The root of every error that trionode raises."""


class RemoteError(TrionodeError):
    """A peer sent nonsense, failed to authenticate or vanished; it ends that link or channel and harms nothing else."""


class WireError(RemoteError):
    """Bytes from a peer that are not what the wire specification allows."""


class DecryptError(RemoteError):
    """A sealed message whose tag, nonce or key is not acceptable; no state has moved."""


class HandshakeError(RemoteError):
    """A handshake message, or the identity in it, that does not verify or is not trusted."""


class IdentityError(RemoteError):
    """A change history, attestation or identifier that does not verify, or that contradicts what is known."""


class ConnectionLost(RemoteError):
    """The connection to a peer could not be made, or it ended."""


class AnswerTimeout(RemoteError):
    """Nobody answered before the deadline; silence and refusal look alike from outside."""


class ServiceError(RemoteError):
    """A stream, store or other service answered that it could not do what it was asked."""


class LocalError(TrionodeError):
    """This program broke a rule of the interface."""


class UnknownAddressError(LocalError):
    """A route whose first address is nobody's on this node."""


class AddressInUseError(LocalError):
    """An address that is taken already on this node."""


class MessageTooLargeError(LocalError):
    """A message that the link or stream it was meant for can't carry."""


class ClosedError(LocalError):
    """The node, channel or stream was closed by this program."""


class VaultError(LocalError):
    """A vault that can't be opened, or a key that it does not hold."""
