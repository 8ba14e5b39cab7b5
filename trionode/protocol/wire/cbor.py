"""CBOR as the current generation uses it (spec §1.2): decoded only after a look at every head, and read as structs and enums."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import attrs
import cbor2

from trionode.errors import LocalError, WireError

#: What can be sent; integers are 0 to 2^64 - 1.
Value = None | bool | int | bytes | str | Sequence["Value"] | Mapping["Value", "Value"]

#: The deepest nesting of arrays, maps and tags that is read (spec §14).
MAX_DEPTH = 16

#: All items of one document together, a map's keys among them. A frame of 16 MiB could hold as many items as bytes, and each would cost
#: many times its size in memory; the longest real document, a history of a thousand changes, has fewer than 10,000.
MAX_ITEMS = 16_384

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_UNDEFINED = b"\xf7"

T = TypeVar("T")


def encode(value: Value) -> bytes:
    """Return the shortest definite-length encoding of `value`; a struct is a list of its fields, a map keeps its order. LocalError for other types."""
    try:
        return cbor2.dumps(value)
    except cbor2.CBOREncodeError as error:
        raise LocalError(f"CBOR takes None, bool, int, bytes, str, lists and dicts of them: {error}") from None


def decode(data: bytes, *, max_depth: int = MAX_DEPTH) -> object:
    """Return the one value that `data` holds: None, bool, int, float, bytes, str, a list, or a dict.

    Heads that are not the shortest are read. WireError for anything behind the value, indefinite lengths, lengths beyond the input, more
    than `max_depth` levels or `MAX_ITEMS` items, a map with the same key twice or with keys other than integers and strings, and text that
    is not UTF-8; all of it but the last is found before anything is allocated. Whatever stands under a tag comes out as `cbor2.undefined`:
    no field of ours has one, but a struct may end in one that we don't know.
    """
    plain = _checked(data, max_depth)
    try:
        return cbor2.loads(plain)
    except cbor2.CBORDecodeError as error:
        raise WireError(f"CBOR that can't be decoded: {error}") from None


def fields(value: object, required: int, optional: int = 0) -> list[object]:
    """Return the fields of a struct, exactly `required + optional` of them: absent ones are None, later ones than we know are left out.

    WireError if it is no array or lacks a required field. A null for a required field is left for whoever reads that field to refuse.
    """
    items = narrow(value, list)
    if len(items) < required:
        raise WireError(f"a struct of {len(items)} fields where {required} are required")
    known = items[: required + optional]
    return known + [None] * (required + optional - len(known))


def variant(value: object) -> tuple[int, list[object]]:
    """Return the number and the fields of an enum value `[variant, [fields...]]`; the fields go through `fields` next."""
    items = narrow(value, list)
    if len(items) != 2:
        raise WireError(f"an enum value of {len(items)} items instead of 2")
    return uint(items[0]), narrow(items[1], list)


def narrow(value: object, kind: type[T]) -> T:
    """`value`, if it is exactly of this type (a bool is no int); WireError otherwise."""
    if type(value) is not kind:
        raise WireError(f"a {type(value).__name__} where CBOR should hold {kind.__name__}")
    return value


def uint(value: object, limit: int = 2**64 - 1) -> int:
    """`value`, if it is an integer from 0 to `limit`; WireError otherwise."""
    number = narrow(value, int)
    if not 0 <= number <= limit:
        raise WireError(f"an integer that is not within 0 and {limit}")
    return number


@attrs.define
class _Level:
    """An array, map or tag whose items are being looked at."""

    left: int
    keys: set[tuple[int, int | bytes]] | None = None  # of a map: those seen; a key comes next whenever `left` is even
    tag_at: int | None = None


def _checked(data: bytes, max_depth: int) -> bytes:
    """Return `data` with `undefined` for every tagged item; WireError if a head in it breaks a rule of `decode`."""
    end = len(data)
    position, items = 0, 1
    levels = [_Level(1)]
    tagged: list[tuple[int, int]] = []  # from, to
    while levels:
        level = levels[-1]
        if not level.left:
            levels.pop()
            if level.tag_at is not None:
                while tagged and tagged[-1][0] > level.tag_at:  # tags within this one go with it
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
                raise WireError("a CBOR map key that is neither an integer nor a string")
            key = (major, data[position - argument : position] if major >= _BYTES else argument)
            if key in level.keys:
                raise WireError("a CBOR map with the same key twice")
            level.keys.add(key)
        level.left -= 1
        if major in {_ARRAY, _MAP, _TAG}:
            children = 1 if major == _TAG else argument * (major - 3)
            items += children
            if children > end - position or items > MAX_ITEMS:
                raise WireError("a CBOR array or map with more items than its input, or than are allowed")
            if len(levels) > max_depth:
                raise WireError(f"CBOR nested deeper than {max_depth} levels")
            levels.append(_Level(children, set() if major == _MAP else None, at if major == _TAG else None))
    if position != end:
        raise WireError(f"{end - position} bytes behind a CBOR value")
    return _without(data, tagged) if tagged else data


def _head(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Major type, argument and end of the head at `at` (RFC 8949 §3)."""
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
