"""The part of BARE that Ockam uses: encoders, and a Reader that checks each length before it reads (spec §1.1, §14)."""

from trionode.errors import ConfigError, WireError

#: Largest `uint`: 64 bits.
MAX_UINT = (1 << 64) - 1
#: Longest `uint`: 64 bits in groups of 7.
MAX_UINT_BYTES = 10

_SHORT = tuple(bytes([value]) for value in range(0x80))


def uint(value: int) -> bytes:
    """Encode the shortest `uint`; ConfigError outside 0 … 2^64-1."""
    if 0 <= value < 0x80:
        return _SHORT[value]
    if not 0 <= value <= MAX_UINT:
        raise ConfigError(f"a BARE uint holds 0 … 2^64-1, not {value}")
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def u8(value: int) -> bytes:
    """Encode one byte; ConfigError outside 0 … 255."""
    if not 0 <= value <= 0xFF:
        raise ConfigError(f"a BARE u8 holds 0 … 255, not {value}")
    return bytes([value])


def u32(value: int) -> bytes:
    """Encode four bytes, little endian; ConfigError outside 0 … 2^32-1."""
    if not 0 <= value <= 0xFFFFFFFF:
        raise ConfigError(f"a BARE u32 holds 0 … 2^32-1, not {value}")
    return value.to_bytes(4, "little")


def data(content: bytes) -> bytes:
    """Encode `data`: the length and the bytes."""
    return uint(len(content)) + content


def string(text: str) -> bytes:
    """Encode a `string`: like `data`, in UTF-8; ConfigError for a str with lone surrogates."""
    try:
        return data(text.encode())
    except UnicodeEncodeError as error:
        raise ConfigError(f"this str can't be encoded in UTF-8: {error}") from None


def optional(encoded: bytes | None) -> bytes:
    """Encode `optional<T>`: None, or a T that is encoded already."""
    return b"\x00" if encoded is None else b"\x01" + encoded


def only_data(source: bytes) -> bytes:
    """Return the content of `data` that fills the whole input; WireError otherwise."""
    reader = Reader(source)
    content = reader.data()
    reader.end()
    return content


class Reader:
    """Reads the values of `source` in order.

    WireError if a value is missing or invalid; do not use the reader after that.
    """

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
        """Read `fixed[length]`: exactly `length` bytes."""
        start = self._at
        # The slice allocates, so the check comes first.
        if length > len(self._source) - start:
            raise WireError(f"a length of {length} bytes, but {self.left} bytes are left")
        self._at = start + length
        return self._source[start : self._at]

    def u8(self) -> int:
        """Read one byte as a number."""
        return self.fixed(1)[0]

    def u32(self) -> int:
        """Read four bytes, little endian."""
        return int.from_bytes(self.fixed(4), "little")

    def uint(self) -> int:
        """Read a `uint` of at most 10 bytes and 64 bits. Like old peers, accept forms that are not the shortest."""
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
        """Read a length and that many bytes."""
        return self.fixed(self.uint())

    def string(self) -> str:
        """Read a length and that many bytes of strict UTF-8."""
        try:
            return self.data().decode()
        except UnicodeDecodeError:
            raise WireError("a string that is not UTF-8") from None

    def variant(self, count: int) -> int:
        """Read the number of one of the `count` variants of a union or enum."""
        variant = self.uint()
        if variant >= count:
            raise WireError(f"variant {variant} of a union of {count} variants")
        return variant

    def optional(self) -> bool:
        """Read whether the value of an `optional<T>` follows; WireError unless the byte is 00 or 01."""
        flag = self.u8()
        if flag > 1:
            raise WireError(f"an optional that begins with {flag:#04x}")
        return flag == 1

    def count(self, smallest: int) -> int:
        """Read the number of items in a list.

        WireError if that many items of `smallest` bytes (at least 1) do not fit into the rest.
        """
        count = self.uint()
        if count * smallest > self.left:
            raise WireError(f"a list of {count} items, but {self.left} bytes are left")
        return count

    def end(self) -> None:
        """WireError if anything is left."""
        if self.left:
            raise WireError(f"{self.left} bytes behind the value")
