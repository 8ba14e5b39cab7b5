"""BARE as far as Ockam uses it: encoders that return bytes, and a Reader that checks before it takes (spec §1.1, §14)."""

from trionode.errors import LocalError, WireError

#: Largest `uint`: 64 bits.
MAX_UINT = (1 << 64) - 1
#: Longest `uint`: 64 bits in groups of 7.
MAX_UINT_BYTES = 10

_SHORT = tuple(bytes([value]) for value in range(0x80))


def uint(value: int) -> bytes:
    """Encode the shortest `uint`; LocalError outside 0 … 2^64-1."""
    if 0 <= value < 0x80:
        return _SHORT[value]
    if not 0 <= value <= MAX_UINT:
        raise LocalError(f"a BARE uint holds 0 … 2^64-1, not {value}")
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def u8(value: int) -> bytes:
    """Encode one byte; LocalError outside 0 … 255."""
    if not 0 <= value <= 0xFF:
        raise LocalError(f"a BARE u8 holds 0 … 255, not {value}")
    return bytes([value])


def u32(value: int) -> bytes:
    """Encode four bytes, little endian; LocalError outside 0 … 2^32-1."""
    if not 0 <= value <= 0xFFFFFFFF:
        raise LocalError(f"a BARE u32 holds 0 … 2^32-1, not {value}")
    return value.to_bytes(4, "little")


def data(content: bytes) -> bytes:
    """Encode `data`: the length, then the bytes."""
    return uint(len(content)) + content


def string(text: str) -> bytes:
    """Encode a `string`: like `data`, in UTF-8; LocalError for a str that has none (lone surrogates)."""
    try:
        return data(text.encode())
    except UnicodeEncodeError as error:
        raise LocalError(f"a BARE string is UTF-8, and this str can't be written in it: {error}") from None


def optional(encoded: bytes | None) -> bytes:
    """Encode `optional<T>` of a T that is encoded already, or of None."""
    return b"\x00" if encoded is None else b"\x01" + encoded


def only_data(source: bytes) -> bytes:
    """Return the content of `data` that fills the whole input; WireError otherwise."""
    reader = Reader(source)
    content = reader.data()
    reader.end()
    return content


class Reader:
    """Reads one value after the other from `source`; WireError for whatever is not there or not so. After an error it is of no more use."""

    __slots__ = ("_at", "_source")

    def __init__(self, source: bytes, at: int = 0) -> None:
        self._source = source
        self._at = at

    @property
    def at(self) -> int:
        """The offset of the next byte."""
        return self._at

    @property
    def left(self) -> int:
        """The number of bytes not read yet."""
        return len(self._source) - self._at

    def fixed(self, length: int) -> bytes:
        """Read `fixed[length]`: so many bytes."""
        start = self._at
        # The bound comes before the slice, and the slice is what allocates.
        if length > len(self._source) - start:
            raise WireError(f"{length} bytes announced, {self.left} there")
        self._at = start + length
        return self._source[start : self._at]

    def u8(self) -> int:
        """Read one byte as a number."""
        return self.fixed(1)[0]

    def u32(self) -> int:
        """Read four bytes, little endian."""
        return int.from_bytes(self.fixed(4), "little")

    def uint(self) -> int:
        """Read a `uint` of at most 10 bytes and 64 bits; a longer form than the shortest is taken, since old peers take it too."""
        value = 0
        for shift in range(0, 7 * MAX_UINT_BYTES, 7):
            group = self.u8()
            value |= (group & 0x7F) << shift
            if group < 0x80:
                if value > MAX_UINT:
                    break
                return value
        raise WireError("a uint beyond 64 bits")

    def data(self) -> bytes:
        """Read a length, then so many bytes."""
        return self.fixed(self.uint())

    def string(self) -> str:
        """Read a length, then so many bytes of strict UTF-8."""
        try:
            return self.data().decode()
        except UnicodeDecodeError:
            raise WireError("a string that is not UTF-8") from None

    def variant(self, count: int) -> int:
        """Read the number of one of the `count` variants of a union or enum."""
        variant = self.uint()
        if variant >= count:
            raise WireError(f"variant {variant} of a union that has {count}")
        return variant

    def optional(self) -> bool:
        """Read whether the value of an `optional<T>` follows; anything but 00 and 01 is refused."""
        flag = self.u8()
        if flag > 1:
            raise WireError(f"an optional that begins with {flag:#04x}")
        return flag == 1

    def count(self, smallest: int) -> int:
        """Read the number of a list's items, refused if so many of `smallest` bytes (at least 1) can't be in what is left."""
        count = self.uint()
        if count * smallest > self.left:
            raise WireError(f"{count} items announced, {self.left} bytes there")
        return count

    def end(self) -> None:
        """Refuse whatever stands behind the value."""
        if self.left:
            raise WireError(f"{self.left} bytes behind the value")
