"""The names of streams, clients and producers, and names that can't be guessed."""

import re
from hashlib import sha256

from trionode.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_CAPABILITY = re.compile(r"[A-Za-z0-9._-]+_[0-9a-f]{32}")
_UUID7 = re.compile(rb"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}")


def valid_stream_name(name: str) -> bool:
    """Whether a stream may have this name. With a prefix it must be a valid Kafka topic (at most 249 characters).

    Args:
      name: The name.

    Returns:
      Whether it has 1 to 200 of `A-Z a-z 0-9 . _ -`, and is neither `.` nor `..`.
    """
    return _NAME.fullmatch(name) is not None and name not in {".", ".."}


def valid_client_id(client_id: str) -> bool:
    """Whether a consumer may have this id: the rules are those for names of streams."""
    return valid_stream_name(client_id)


def unique(name: str, entropy: bytes) -> str:
    """Return `name`, "_" and the 16 bytes of entropy in hex: a stream name that can't be guessed."""
    if len(entropy) != 16:
        raise ConfigError(f"a unique name takes 16 random bytes, not {len(entropy)}")
    return f"{name}_{entropy.hex()}"


def is_capability(name: str) -> bool:
    """Whether a stream name ends in 128 random bits, as from `unique`.

    Only a client that was given such a name knows it.
    """
    return _CAPABILITY.fullmatch(name) is not None


def uuid7_hex(milliseconds: int, entropy: bytes) -> str:
    """Make the address of a producer: a UUIDv7 (RFC 9562 §5.7).

    Args:
      milliseconds: The Unix time in milliseconds, below 2^48.
      entropy: 10 random bytes.

    Returns:
      The UUID as 32 hex characters without dashes.

    Raises:
      ConfigError: An argument is out of range.
    """
    if len(entropy) != 10 or not 0 <= milliseconds < 1 << 48:
        raise ConfigError(
            f"a UUIDv7 takes 48 bits of milliseconds and 10 random bytes, not {milliseconds} and {len(entropy)}"
        )
    version = 0x7000 | int.from_bytes(entropy[:2], "big") & 0x0FFF
    variant = 0x8000000000000000 | int.from_bytes(entropy[2:], "big") & 0x3FFFFFFFFFFFFFFF
    return f"{milliseconds:012x}{version:04x}{variant:016x}"


def producer_name(milliseconds: int, entropy: bytes) -> str:
    """Make the address of a producer that resends pushes: a UUIDv7 whose last 32 bits are a checksum.

    By it a hub recognises such a producer also behind a classic link. Classic producers never resend (spec §11.5), and
    one in 2^38 of their random addresses passes the check.
    """
    head = uuid7_hex(milliseconds, entropy)[:24]
    return head + _check(head.encode())


def resends_pushes(producer: bytes) -> bool:
    """Whether an address was made by `producer_name`, so its producer resends unconfirmed pushes."""
    return uuid7_milliseconds(producer) is not None and producer[24:] == _check(producer[:24]).encode()


def _check(head: bytes) -> str:
    return sha256(b"trionode producer " + head).hexdigest()[:8]


def uuid7_milliseconds(producer: bytes) -> int | None:
    """Return the time at which a producer's address was made.

    Do not trust it: the producer chooses its address. One in 64 random addresses looks like a UUIDv7.

    Args:
      producer: The address of the producer.

    Returns:
      The Unix time in milliseconds; None if the address is not a UUIDv7.
    """
    return int(producer[:12], 16) if _UUID7.fullmatch(producer) else None
