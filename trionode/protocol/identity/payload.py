"""The identity payload of a handshake message: history, attested purpose key, credentials (spec §7.1)."""

from typing import Self

import attrs

from trionode.errors import IdentityError, WireError
from trionode.protocol.delivery.terms import Offer, Terms
from trionode.protocol.identity.attestation import PurposeKeyAttestation
from trionode.protocol.identity.credential import PresentedCredential
from trionode.protocol.identity.identity import ChangeHistory, read_history
from trionode.protocol.identity.signed import Signed
from trionode.protocol.wire import cbor

#: Credentials that one peer may present. Each costs two signature checks, and a peer needs one for each of its
#: authorities.
MAX_CREDENTIALS = 16
#: Bytes in one identity payload: the limit of a Noise message (Noise §3). The largest of known peers has about 1 kB.
MAX_PAYLOAD = 65_535


@attrs.frozen
class IdentityPayload:
    """The identity that a peer presents in a handshake (spec §7.1).

    Its history is verified. Call `verify` for the attestation; the credentials are not verified.
    """

    history: ChangeHistory
    attestation: PurposeKeyAttestation
    credentials: tuple[PresentedCredential, ...] = ()
    #: What the peer says about delivery: an item behind the others, which peers without a delivery layer skip.
    delivery: Offer | Terms | None = None

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the payload and verify its history; IdentityError if either fails."""
        if len(data) > MAX_PAYLOAD:
            raise IdentityError(f"an identity payload has at most {MAX_PAYLOAD} bytes, this one {len(data)}")
        try:
            history, attestation, credentials, delivery = cbor.fields(cbor.decode(data), 3, 1)
            listed = cbor.narrow(credentials, list)
            if len(listed) > MAX_CREDENTIALS:
                raise IdentityError(
                    f"a peer presents at most {MAX_CREDENTIALS} credentials, this one presents {len(listed)}"
                )
            presented = tuple(map(PresentedCredential.of, listed))
            attested = PurposeKeyAttestation.of(Signed.of(attestation))
            return cls(read_history(history), attested, presented, Offer.of(delivery))
        except WireError as error:
            raise IdentityError(f"not an identity payload: {error}") from error

    def encode(self) -> bytes:
        """Return the bytes for the handshake message."""
        credentials = [credential.item for credential in self.credentials]
        delivery = () if self.delivery is None else (self.delivery.item(),)
        return cbor.encode([self.history.item, self.attestation.signed.item, credentials, *delivery])

    def verify(self, static_key: bytes, now: int) -> None:
        """IdentityError unless the identity attests, at `now`, the X25519 key that the handshake proved."""
        if self.attestation.key != static_key:
            raise IdentityError("the attested key is not the key of this handshake")
        self.attestation.verify(self.history, now)
