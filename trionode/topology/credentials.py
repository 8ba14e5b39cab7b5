"""Trust and access by attributes, as a topology says them: what has to be proven, and which nodes hold a proof."""

from collections.abc import Mapping
from functools import lru_cache

from trionode.errors import IdentityError
from trionode.identity.attributes import authority_history, has_attributes
from trionode.protocol.identity.credential import PresentedCredential, read_credential, verify_credential
from trionode.topology.spec import AccessSpec, IdentitySpec, TrustSpec

#: The value of an attribute that stands for any value.
ANY = "*"


def wanted(spec: AccessSpec | TrustSpec) -> Mapping[str, str | None]:
    """Return the required attributes; None stands for any value."""
    return {name: None if value == ANY else value for name, value in spec.attributes.items()}


def is_held(spec: AccessSpec | TrustSpec, identity: IdentitySpec) -> bool:
    """Whether a credential in the topology gives this identity the required attributes, before it expires."""
    if spec.authority is None:
        return False
    return any(
        _proves(spec.authority, tuple(wanted(spec).items()), identity.identifier, each) for each in identity.credentials
    )


@lru_cache(maxsize=1024)  # proofs ask again and again
def _proves(
    authority: str, attributes: tuple[tuple[str, str | None], ...], identifier: str | None, credential: str
) -> bool:
    try:
        presented = PresentedCredential.import_(credential)
        said = read_credential(presented)
        verified = verify_credential(presented, said.subject, [authority_history(authority)], said.created_at)
    except IdentityError:
        return False
    return identifier in {None, str(said.subject)} and has_attributes(verified, dict(attributes))
