"""A route: the hops that a message passes, in order, as people write it."""

from collections.abc import Iterator
from functools import cached_property
from typing import Protocol, runtime_checkable

import attrs

from trionode.errors import LocalError
from trionode.protocol.wire.address import Address, Encoded

#: Hops in the onward and the return route together, checked on every receive: what ends a loop between nodes (spec §14).
MAX_HOPS = 32


@runtime_checkable
class Routable(Protocol):
    """What can stand in a route as a hop: a stream, a secure channel, a link; each knows the address it has on this node."""

    @property
    def address(self) -> Address:
        """Its address on the node that it belongs to."""
        ...


@attrs.frozen(init=False)
class Route:
    """The addresses that a message visits, first to last. `Route("tcp:127.0.0.1:4000", "echoer")`, `Route(channel, "echoer")`.

    Every hop is an Address, a text (see `Address.parse`), something routable, or a whole Route whose hops are taken over.
    """

    hops: tuple[Address, ...]

    def __init__(self, *hops: "Address | str | Routable | Route") -> None:
        flat: list[Address] = []
        for hop in hops:
            if isinstance(hop, Route):
                flat.extend(hop.hops)
            elif isinstance(hop, str):
                flat.append(Address.parse(hop))
            elif isinstance(hop, Address):
                flat.append(hop)
            else:
                flat.append(hop.address)
        self.__attrs_init__(tuple(flat))  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it because of init=False

    @classmethod
    def from_encoded(cls, route: tuple[Encoded, ...]) -> "Route":
        """Return the object of a route as messages hold it."""
        return cls(*map(Address.from_encoded, route))

    @cached_property
    def encoded(self) -> tuple[Encoded, ...]:
        """The hops as messages hold them; LocalError for more of them than a message may have."""
        if len(self.hops) >= MAX_HOPS:
            msg = f"a route to send by has at most {MAX_HOPS - 1} hops (the sender's address makes {MAX_HOPS}), this one has {len(self.hops)}"
            raise LocalError(msg)
        return tuple(hop.encoded for hop in self.hops)

    def __iter__(self) -> Iterator[Address]:
        return iter(self.hops)

    def __len__(self) -> int:
        return len(self.hops)

    def __str__(self) -> str:
        return " => ".join(map(str, self.hops))
