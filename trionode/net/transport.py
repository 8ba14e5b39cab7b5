"""The interface between a node and its transports: transports make links, and links move bursts of whole frames."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import ClassVar, Never, Protocol, get_type_hints

import trio

from trionode.errors import ConfigError, LocalError
from trionode.net.endpoint import AddressParts, Exposure, parse_host_port_path
from trionode.net.plugins import TRANSPORTS, load_plugin
from trionode.protocol.wire.version import ProtocolVersion


class Link(Protocol):
    """A connection to one peer that moves whole frames in order.

    Both ends know its protocol version when the node gets it. One task receives, and one sends.
    """

    @property
    def peer(self) -> str:
        """The other end, for logs."""
        ...

    @property
    def protocol_version(self) -> ProtocolVersion:
        """The protocol version that both ends speak."""
        ...

    @property
    def max_frame(self) -> int:
        """Bytes in the largest frame that may be sent, at most `protocol_version.max_sent`.

        A frame has at least one byte.
        """
        ...

    async def receive(self) -> Sequence[bytes]:
        """Return all frames that one read brought.

        Frames are whole, however the link ends, and no frame follows an end.

        Returns:
          At least one frame; () at the peer's orderly end, and from then on.

        Raises:
          ConnectionLost: The link ended otherwise.
          WireError: The peer sent something else than frames, or a frame that is larger than this end takes.

        If cancelled, nothing is lost.
        """
        ...

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send a burst of frames, and wait while the peer does not read. An empty burst sends nothing.

        Args:
          frames: The burst. The caller may change the list afterwards.

        Raises:
          MessageTooLargeError: A frame has more than `max_frame` bytes. Nothing of the burst was sent, and the link
              stays usable.
          ConnectionLost: The peer has disconnected. `receive` still returns the frames that had arrived, and then the
              end.

        If cancelled, part of the burst may have been sent, and the link can only be closed.
        """
        ...

    async def send_eof(self) -> None:
        """Signal the end of this direction to the peer, if the transport can.

        `receive` continues until the peer's own end.

        Call it after the last `send`. It raises nothing if the peer has disconnected, and does nothing the second time.

        If cancelled, the link can still be closed.
        """
        ...

    async def aclose(self) -> None:
        """End this direction, read until the peer's end for a short time, and close. A second call does nothing.

        Call it when no task receives or sends.

        If cancelled, the link is closed all the same.
        """
        ...


class Transport(ABC):
    """The base class of transports, which connect and listen, and return links.

    An entry point in the group `trionode.transports` names the class, or a function that returns an instance. A node
    calls `open` once, and then connects and listens with the object that `open` returned.

    The class attributes and class methods describe the transport without a connection, for the checks and proofs of
    topologies and for the command line. The defaults are safe for a transport that says nothing: any address is valid,
    and the network can read every byte.
    """

    #: What an address begins with: `tcp` in `tcp:127.0.0.1:4000`.
    name: ClassVar[str]
    #: Whether a listener binds the TCP port of its address. Addresses are then HOST:PORT, perhaps with a path.
    binds_tcp_port: ClassVar[bool] = False
    #: Whether the constructor takes `sockets`, listening sockets that `serve` uses in place of its address.
    takes_sockets: ClassVar[bool] = False
    #: Whether the constructor takes `certificate`, `key`, `ca_file` and `client_ca_file`, and uses them for TLS between
    #: nodes.
    takes_certificates: ClassVar[bool] = False
    #: Who observes the bytes of links between their two ends.
    exposure: ClassVar[Exposure] = Exposure.NETWORK
    #: The transport that connects to the same listeners by the classic protocol version; "" if there is none.
    classic_name: ClassVar[str] = ""

    @classmethod
    def parse_address(cls, address: str) -> AddressParts:
        """Return the parts of an address of this transport, without name resolution.

        Args:
          address: The text behind `name:`.

        Raises:
          LocalError: The address is not valid; the text says what was expected.
        """
        try:
            return parse_host_port_path(address)
        except LocalError:
            return AddressParts(path=address)

    @classmethod
    def exposure_with(cls, options: Mapping[str, object]) -> Exposure:
        """Return who observes the bytes of links, if that depends on options. By default it is `exposure`.

        Args:
          options: The options that the transport is made with.
        """
        del options
        return cls.exposure

    @classmethod
    def local_address(cls, address: str, free_port: Callable[[], int]) -> str | None:
        """Return an address of this machine that takes the place of another transport's address in tests.

        None means that there is no good guess.

        Args:
          address: The text behind `name:` of the address that is replaced; equal texts mean the same listener.
          free_port: Returns a TCP port that is free, a new one each time.
        """
        del address
        return f"127.0.0.1:{free_port()}" if cls.binds_tcp_port else None

    def open(self, nursery: trio.Nursery) -> "Transport":
        """Return the transport for one node, which may start the tasks of its connections in `nursery`.

        By default that is the transport itself, for transports without tasks. A transport with tasks or shared clients
        returns a new object that holds `nursery`, because one transport may serve several nodes.

        Args:
          nursery: It lives as long as the node. It outlives every link and listener, and is cancelled after the node
              has closed them. An exception in one of its tasks ends the node.

        Returns:
          A transport with the same name.
        """
        del nursery
        return self

    @abstractmethod
    async def connect(self, peer: str) -> Link:
        """Return a link to `peer`.

        Args:
          peer: The text behind `name:`.

        Raises:
          ConnectionLost: No answer came, or not a node's. The text names the address and says why.
          ConfigError: `peer` is not an address of this transport.

        If cancelled, nothing stays open.
        """

    @abstractmethod
    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen, and run `accept(link)` in a task of its own for each peer.

        Args:
          at: Where to listen: the text behind `name:`.
          accept: Takes the link over. It is cancelled with the listener, and the link stays open.
          task_status: `started` reports the bound address.

        Raises:
          ConfigError: The address is in use or not valid. The text names it.

        If cancelled, the address is free for the next listener.
        """
        ...  # pyright takes only this body for one without an implementation


@cache
def transport_class(name: str) -> type[Transport]:
    """Return the class of the transport that is installed under a name, for its static properties.

    If there is none, or it cannot be imported, the result is `Transport`, whose answers are safe defaults.

    Args:
      name: What addresses of the transport begin with.
    """
    try:
        made = load_plugin(TRANSPORTS, name)
        kind = made if isinstance(made, type) else get_type_hints(made).get("return")
    except (ConfigError, NameError):  # a missing plugin is reported where it is needed
        return Transport
    return kind if isinstance(kind, type) and issubclass(kind, Transport) else Transport


def load_transport(name: str, **options: object) -> Transport:
    """Return the transport that is installed under a name.

    Args:
      name: The name of the entry point, such as `tcp`.
      options: The transport's own options.

    Returns:
      The transport, to be given to `open_node`.

    Raises:
      ConfigError: No such transport is installed, a package that it needs is missing, its import failed, or it refuses
          the options.
    """
    transport = load_plugin(TRANSPORTS, name)(**options)
    if not isinstance(transport, Transport):
        raise ConfigError(
            f"the entry point {name!r} in {TRANSPORTS} makes {transport!r}, which is not a trionode.plugins.Transport: "
            "make its class a subclass"
        )
    return transport
