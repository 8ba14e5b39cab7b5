"""A route: the addresses that a message passes, in order."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol, TypeAlias, runtime_checkable

import attrs

from trionode.errors import ConfigError
from trionode.protocol.wire.address import Address, Encoded

#: Hops in the onward and the return route together, checked on every receive. This ends a loop between nodes
#: (spec §14).
MAX_HOPS = 32


@runtime_checkable
class Routable(Protocol):
    """An object that can be a hop of a route: a stream, a secure channel, a link."""

    @property
    def address(self) -> Address:
        """Its address on the node that it belongs to."""
        ...


@attrs.frozen(init=False)
class Route:
    """The addresses that a message passes, first to last.

    Examples: `Route("tcp:127.0.0.1:4000", "echoer")`, `Route(channel, "echoer")`.

    Args:
      *hops: Addresses, texts (see `Address.parse`), streams, secure channels or links. A Route, a list or a tuple
        stands for its hops.

    Raises:
      ConfigError: A hop is none of these, or its text is not an address.
    """

    hops: tuple[Address, ...]

    def __init__(self, *hops: "RouteLike") -> None:
        flat: list[Address] = []
        for hop in hops:
            if isinstance(hop, Address):
                flat.append(hop)
            elif isinstance(hop, str):
                flat.append(Address.parse(hop))
            elif isinstance(hop, Route | list | tuple):
                flat.extend(Route(*hop))
            elif isinstance(hop, Routable):
                flat.append(hop.address)
            else:
                msg = f"a hop is an address, a text, a stream, a secure channel or a link, not {hop!r:.100}"
                raise ConfigError(msg)
        self.__attrs_init__(tuple(flat))  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it because of init=False

    @classmethod
    def of(cls, route: "RouteLike") -> "Route":
        """Return the route that a verb was given: a Route itself, or one made of a hop or a list of hops.

        Args:
          route: As for the constructor.

        Raises:
          ConfigError: As of the constructor.
        """
        return route if isinstance(route, Route) else cls(route)

    @classmethod
    def from_encoded(cls, route: tuple[Encoded, ...]) -> "Route":
        """Decode a route.

        Args:
          route: The encoded addresses, as a `Message` holds them.

        Returns:
          The route.
        """
        return cls(*map(Address.from_encoded, route))

    @cached_property
    def encoded(self) -> tuple[Encoded, ...]:
        """The encoded addresses, as a `Message` holds them.

        Raises:
          ConfigError: The route has too many hops, or one of them can't be encoded.
        """
        if len(self.hops) >= MAX_HOPS:
            msg = f"a route has at most {MAX_HOPS - 1} hops (with the sender's address {MAX_HOPS}), this one has {len(self.hops)}"
            raise ConfigError(msg)
        return tuple(hop.encoded for hop in self.hops)

    def __iter__(self) -> Iterator[Address]:
        return iter(self.hops)

    def __len__(self) -> int:
        return len(self.hops)

    def __str__(self) -> str:
        return " => ".join(map(str, self.hops))


#: A hop of a route; a Route contributes all of its hops.
Hop: TypeAlias = Address | str | Routable | Route
#: The forms in which methods take a route: a Route, one hop, or a list of hops.
RouteLike: TypeAlias = Hop | Sequence[Hop]
