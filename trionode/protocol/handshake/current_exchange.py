"""The handshake of the current protocol version: Noise XX, and the identities in its payloads (spec §7.1)."""

import copy
from collections.abc import Mapping
from typing import ClassVar, Self

import attrs

from trionode.errors import IdentityError, LocalError
from trionode.protocol.handshake import noise
from trionode.protocol.handshake.exchange import REFUSE_ROWS, Action, Event, Exchange, Peer, State, Table
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.payload import IdentityPayload
from trionode.protocol.session.cipher import CurrentCipher


@attrs.define(eq=False)
class CurrentExchange(Exchange):
    """One side of one handshake (spec §7.1), see `Exchange`; made by `create`.

    The initiator: `begin()` returns message 1; `receive(message 2)` sets `peer`; `accept()` returns message 3. The
    responder: `receive(message 1)` returns message 2; `receive(message 3)` sets `peer`; `accept()`.

    A message that is not acceptable changes nothing: the exchange waits for the right one.
    """

    TABLES: ClassVar[Mapping[noise.Role, Table]] = {
        noise.Role.INITIATOR: {
            (State.READY, Event.BEGIN): (Action.WRITE_FIRST, State.AWAITING),
            (State.AWAITING, Event.RECEIVE): (Action.READ_IDENTITY, State.DECIDING),
            (State.DECIDING, Event.ACCEPT): (Action.WRITE_LAST, State.OPEN),
            **REFUSE_ROWS,
        },
        noise.Role.RESPONDER: {
            (State.READY, Event.RECEIVE): (Action.ANSWER_FIRST, State.AWAITING),
            (State.AWAITING, Event.RECEIVE): (Action.READ_IDENTITY, State.DECIDING),
            (State.DECIDING, Event.ACCEPT): (Action.ACCEPT, State.OPEN),
            **REFUSE_ROWS,
        },
    }

    _payload: IdentityPayload = attrs.field(repr=False)
    _own: Identifier = attrs.field(repr=str)

    @classmethod
    def create(
        cls,
        role: noise.Role,
        vault: Vault,
        static: KeyHandle,
        payload: IdentityPayload,
        ephemeral: KeyHandle | None = None,
    ) -> Self:
        """Return the exchange of one side.

        `static` is the X25519 purpose key, and `payload` is our identity, which attests that key. A test may bring its
        own `ephemeral` key; otherwise a new one is generated.
        """
        if payload.attestation.key != static.public:
            raise LocalError("the payload attests another key than `static`: take both from one identity, at one time")
        ephemeral = ephemeral or vault.generate(KeyKind.X25519, ephemeral=True)
        handshake = noise.HandshakeState(role, vault, static, ephemeral, noise.OCKAM_CURRENT)
        return cls(vault, handshake, (ephemeral,), payload, payload.history.identifier)

    def cipher(self) -> CurrentCipher:
        """Return a new cipher around the session."""
        return CurrentCipher(self.session())

    def _do(self, action: Action, message: bytes, now: int) -> bytes | None:
        match action:
            case Action.WRITE_FIRST:
                return self._noise.write_message()
            case Action.ANSWER_FIRST:
                return self._answer_first(message)
            case Action.READ_IDENTITY:
                self._read_identity(message, now)
            case Action.WRITE_LAST:
                last = self._noise.write_message(attrs.evolve(self._payload, delivery=self._terms).encode())
                self._session = self._make_session(rekey=True)
                return last
            case Action.ACCEPT:
                self._session = self._make_session(rekey=True)
            case Action.FORGET:
                self._forget_keys()
            case _:
                pass
        return None

    # A copy of the handshake reads what the peer sent. Anybody can send good Noise around a bad identity, or a message
    # that we can't answer, and the right message must still be accepted afterwards.

    def _answer_first(self, message: bytes) -> bytes:
        attempt = copy.copy(self._noise)
        attempt.read_message(message)
        answer = attempt.write_message(self._payload.encode())
        self._noise = attempt
        return answer

    def _read_identity(self, message: bytes, now: int) -> None:
        attempt = copy.copy(self._noise)
        payload = IdentityPayload.decode(attempt.read_message(message))
        payload.verify(attempt.remote_static, now)
        if payload.history.identifier == self._own:
            raise IdentityError("the peer presents our own identity: a reflection, or one identity at both ends")
        self.peer = Peer(payload.history, payload.credentials)
        self.delivery = payload.delivery
        self._noise = attempt
        self._forget_keys()  # the ephemeral key: all secrets that it agrees on are mixed in by now
