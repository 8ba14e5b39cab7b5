"""The names that streams, clients and producers may have, and those that nobody can guess."""

import re
from hashlib import sha256

from trionode.errors import LocalError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_CAPABILITY = re.compile(r"[A-Za-z0-9._-]+_[0-9a-f]{32}")
_UUID7 = re.compile(rb"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}")


def valid_stream_name(name: str) -> bool:
    """Whether a stream may have this name: 1 to 200 of `A-Z a-z 0-9 . _ -`, so that behind a prefix it is a Kafka topic's (249 at most)."""
    return _NAME.fullmatch(name) is not None and name not in {".", ".."}


def valid_client_id(client_id: str) -> bool:
    """Whether a consumer may have this id: what a stream may be called."""
    return valid_stream_name(client_id)


def unique(name: str, entropy: bytes) -> str:
    """Join `name`, "_" and the 16 bytes of entropy in hex: a stream name that nobody can guess or meet by chance."""
    if len(entropy) != 16:
        raise LocalError(f"a unique name takes 16 random bytes, not {len(entropy)}")
    return f"{name}_{entropy.hex()}"


def is_capability(name: str) -> bool:
    """Whether a stream name looks as `unique` makes it, with 128 bits that nobody can guess: who knows it was told it."""
    return _CAPABILITY.fullmatch(name) is not None


def uuid7_hex(milliseconds: int, entropy: bytes) -> str:
    """Make a producer's address: a UUIDv7 (RFC 9562 §5.7) of Unix milliseconds and 10 random bytes, as 32 hex characters without dashes."""
    if len(entropy) != 10 or not 0 <= milliseconds < 1 << 48:
        raise LocalError(
            f"a UUIDv7 takes 48 bits of milliseconds and 10 random bytes, not {milliseconds} and {len(entropy)}"
        )
    version = 0x7000 | int.from_bytes(entropy[:2], "big") & 0x0FFF
    variant = 0x8000000000000000 | int.from_bytes(entropy[2:], "big") & 0x3FFFFFFFFFFFFFFF
    return f"{milliseconds:012x}{version:04x}{variant:016x}"


def producer_name(milliseconds: int, entropy: bytes) -> str:
    """Make the address of a producer that sends unconfirmed pushes again: a UUIDv7 of the same, its last 32 bits a check of the others.

    By it a hub knows such a producer also behind a link of the classic generation, whose own never send again (spec §11.5): their random
    addresses pass for one once in 2^38.
    """
    head = uuid7_hex(milliseconds, entropy)[:24]
    return head + _check(head.encode())


def sends_again(producer: bytes) -> bool:
    """Whether an address is one that `producer_name` makes."""
    return born_at(producer) is not None and producer[24:] == _check(producer[:24]).encode()


def _check(head: bytes) -> str:
    return sha256(b"trionode producer " + head).hexdigest()[:8]


def born_at(producer: bytes) -> int | None:
    """When a producer's address was made, in Unix milliseconds; None if the address is no UUIDv7.

    The producer chose it: one that lies gives any time, and one random address in 64 looks like a UUIDv7.
    """
    return int(producer[:12], 16) if _UUID7.fullmatch(producer) else None
