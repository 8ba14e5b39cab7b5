"""The one interface between a node and what moves its frames: transports make links, links move bursts of whole frames."""

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
    """A connection to one peer that moves whole frames in order, or ends.

    Which generation of the wire it speaks is settled before it is handed over. One task receives, one sends.
    """

    @property
    def peer(self) -> str:
        """The other end, for logs."""
        ...

    @property
    def protocol_version(self) -> ProtocolVersion:
        """The generation that both ends speak."""
        ...

    @property
    def max_frame(self) -> int:
        """Bytes in the largest frame that may be sent, at most `wire.max_sent`; frames have at least one byte."""
        ...

    async def receive(self) -> Sequence[bytes]:
        """All frames that one read brought, at least one; () at the orderly end. ConnectionLost or WireError at any other end.

        Frames are whole, however the peer went; WireError too at a frame that is larger than this end takes. Behind an end comes nothing.
        Cancelled, nothing is lost.
        """
        ...

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send a burst of frames, waiting while the peer does not read. Cancelled half-way, the link is broken.

        An empty burst sends nothing. MessageTooLargeError if a frame has more than `max_frame` bytes, before anything of the burst is sent:
        the link stays usable. ConnectionLost if the peer is gone; `receive` still brings what had arrived, and then ends.
        """
        ...

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes, where the transport can; nothing is sent after it, and `receive` goes on to the peer's own end.

        Called once all sends are done; no error if the peer is gone, and a second time it does nothing.
        """
        ...

    async def aclose(self) -> None:
        """Shut down writing, read on until the peer's end or a short grace is over, close. Closed even if cancelled.

        Called when nobody receives or sends; a second time it does nothing.
        """
        ...


class Transport(ABC):
    """What a transport plugin offers: it connects and listens; links are what comes out.

    An entry point in the group `trionode.transports` names the class, or a function that returns an instance. A node calls `open` once and
    then connects and listens by what that returned.

    The class attributes and class methods describe the transport without a connection, for the checks and proofs of topologies and for the
    command line. The defaults are safe for a transport that says nothing: any address is valid, and the network can read every byte.
    """

    #: What an address begins with: `tcp` in `tcp:127.0.0.1:4000`.
    name: ClassVar[str]
    #: Whether a listener binds the TCP port of its address. Addresses are then HOST:PORT, perhaps with a path.
    binds_tcp_port: ClassVar[bool] = False
    #: Whether the constructor takes `sockets`, listening sockets that `serve` uses in place of its address.
    takes_sockets: ClassVar[bool] = False
    #: Whether the constructor takes `certificate`, `key`, `ca_file` and `client_ca_file`, and uses them for TLS between nodes.
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
        """Return an address of this machine that takes the place of another transport's address in tests, or None if there is no good guess.

        Args:
          address: The text behind `name:` of the address that is replaced; equal texts mean the same listener.
          free_port: Returns a TCP port that is free, a new one each time.
        """
        del address
        return f"127.0.0.1:{free_port()}" if cls.binds_tcp_port else None

    def open(self, nursery: trio.Nursery) -> "Transport":
        """Return the transport for one node, which may start the tasks of its connections in `nursery`.

        By default this object itself, for a transport without tasks. A transport that keeps tasks or shared clients returns an object that
        holds `nursery`, since several nodes may use one transport.

        Args:
          nursery: Open for as long as the node. It outlives every link and listener, and is cancelled when the node has closed them. An
              exception in one of its tasks ends the node.
        """
        del nursery
        return self

    @abstractmethod
    async def connect(self, peer: str) -> Link:
        """Return a link to `peer`.

        Args:
          peer: The text behind `name:`.

        Raises:
          ConnectionLost: Nobody answers, or not a node.

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
          accept: Takes the link over. A link is not closed when `accept` is cancelled, as happens when the listener is.
          task_status: `started` reports the bound address.

        Raises:
          LocalError: The address is taken or not valid; the text names it.

        If cancelled, the address is free for the next listener.
        """


@cache
def transport_class(name: str) -> type[Transport]:
    """Return the class of the transport that is installed under a name, for what it tells about itself.

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
      ConfigError: No such transport is installed, a package that it needs is missing, its import failed, or it refuses the options.
    """
    transport = load_plugin(TRANSPORTS, name)(**options)
    if not isinstance(transport, Transport):
        raise ConfigError(
            f"the entry point {name!r} in {TRANSPORTS} makes {transport!r}, which is not a trionode.plugins.Transport: make its class a subclass"
        )
    return transport
