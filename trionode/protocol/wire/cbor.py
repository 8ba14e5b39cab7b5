"""The part of CBOR that the current protocol version uses (spec §1.2).

Every head is checked before anything is decoded.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import attrs
import cbor2

from trionode.errors import ConfigError, WireError

#: The values that can be encoded. Integers are 0 to 2^64 - 1.
Value = None | bool | int | bytes | str | Sequence["Value"] | Mapping["Value", "Value"]

#: The deepest nesting of arrays, maps and tags that is read (spec §14).
MAX_DEPTH = 16

#: Items in one document, with the keys of maps. A frame of 16 MiB could hold as many items as bytes, and each would
#: cost many times its size in memory. The longest real document, a history of a thousand changes, has fewer than
#: 10,000.
MAX_ITEMS = 16_384

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_UNDEFINED = b"\xf7"

T = TypeVar("T")


def encode(value: Value) -> bytes:
    """Return the shortest encoding of definite length. A struct is a list of its fields; a map keeps its order.

    ConfigError for other types.
    """
    try:
        return cbor2.dumps(value)
    except cbor2.CBOREncodeError as error:
        raise ConfigError(f"expected None, bool, int, bytes, str, or lists and dicts of them: {error}") from None


def decode(data: bytes, *, max_depth: int = MAX_DEPTH) -> object:
    """Return the one value in `data`: None, bool, int, float, bytes, str, a list, or a dict.

    Heads that are not the shortest are accepted. WireError for bytes behind the value, indefinite lengths, lengths
    beyond the input, more than `max_depth` levels or `MAX_ITEMS` items, a map with the same key twice or with keys
    other than integers and strings, and text that is not UTF-8. All of them but the last are found before anything is
    allocated.

    A tagged item becomes `cbor2.undefined`. None of our fields has a tag, but a struct may end in an unknown field with
    one.
    """
    plain = _checked(data, max_depth)
    try:
        return cbor2.loads(plain)
    except cbor2.CBORDecodeError as error:
        raise WireError(f"CBOR that can't be decoded: {error}") from None


def fields(value: object, required: int, optional: int = 0) -> list[object]:
    """Return exactly `required + optional` fields of a struct.

    Absent fields are None; unknown fields at the end are dropped.

    WireError if it is not an array or lacks a required field. A required field may still be null: check it where you
    read it.
    """
    items = narrow(value, list)
    if len(items) < required:
        raise WireError(f"a struct of {len(items)} fields, expected at least {required}")
    known = items[: required + optional]
    return known + [None] * (required + optional - len(known))


def variant(value: object) -> tuple[int, list[object]]:
    """Return the variant and the items of an enum value `[variant, [items...]]`; pass the items to `fields`."""
    items = narrow(value, list)
    if len(items) != 2:
        raise WireError(f"an enum value of {len(items)} items instead of 2")
    return uint(items[0]), narrow(items[1], list)


def narrow(value: object, kind: type[T]) -> T:
    """Return `value` if it is exactly of this type (a bool is not an int); WireError otherwise."""
    if type(value) is not kind:
        raise WireError(f"a CBOR {type(value).__name__}, expected {kind.__name__}")
    return value


def uint(value: object, limit: int = 2**64 - 1) -> int:
    """Return `value` if it is an integer from 0 to `limit`; WireError otherwise."""
    number = narrow(value, int)
    if not 0 <= number <= limit:
        raise WireError(f"an integer outside 0 to {limit}")
    return number


@attrs.define
class _Level:
    """An array, map or tag whose items are being checked."""

    left: int
    keys: set[tuple[int, int | bytes]] | None = (
        None  # the keys of a map so far; a key comes next whenever `left` is even
    )
    tag_at: int | None = None


def _checked(data: bytes, max_depth: int) -> bytes:
    """Return `data` with `undefined` in place of every tagged item; WireError if it breaks a rule of `decode`."""
    end = len(data)
    position, items = 0, 1
    levels = [_Level(1)]
    tagged: list[tuple[int, int]] = []  # start and end of each
    while levels:
        level = levels[-1]
        if not level.left:
            levels.pop()
            if level.tag_at is not None:
                while tagged and tagged[-1][0] > level.tag_at:  # drop the tags inside this one
                    tagged.pop()
                tagged.append((level.tag_at, position))
            continue
        at = position
        major, argument, position = _head(data, at, end)
        if major in {_BYTES, _TEXT}:
            if argument > end - position:
                raise WireError("a CBOR string longer than its input")
            position += argument
        if level.keys is not None and level.left % 2 == 0:
            if major > _TEXT:
                raise WireError("a CBOR map key that is not an integer or a string")
            key = (major, data[position - argument : position] if major >= _BYTES else argument)
            if key in level.keys:
                raise WireError("a CBOR map with the same key twice")
            level.keys.add(key)
        level.left -= 1
        if major in {_ARRAY, _MAP, _TAG}:
            children = 1 if major == _TAG else argument * (major - 3)
            items += children
            if children > end - position or items > MAX_ITEMS:
                raise WireError(f"a CBOR array or map with more items than its input, or than {MAX_ITEMS}")
            if len(levels) > max_depth:
                raise WireError(f"CBOR nested deeper than {max_depth} levels")
            levels.append(_Level(children, set() if major == _MAP else None, at if major == _TAG else None))
    if position != end:
        raise WireError(f"{end - position} bytes behind a CBOR value")
    return _without(data, tagged) if tagged else data


def _head(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Return major type, argument and end of the head at `at` (RFC 8949 §3)."""
    if at >= end:
        raise WireError("CBOR that ends too early")
    major, info = data[at] >> 5, data[at] & 31
    if info < 24:
        return major, info, at + 1
    if info > 27:
        raise WireError("a CBOR item of indefinite length, or with a reserved head")
    position = at + 1 + (1 << (info - 24))
    if position > end:
        raise WireError("CBOR that ends too early")
    return major, int.from_bytes(data[at + 1 : position], "big"), position


def _without(data: bytes, spans: list[tuple[int, int]]) -> bytes:
    parts: list[bytes] = []
    position = 0
    for start, stop in spans:
        parts += (data[position:start], _UNDEFINED)
        position = stop
    return b"".join((*parts, data[position:]))
