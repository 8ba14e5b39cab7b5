"""What the nodes of a topology are made of, and keep when they crash: who they are, their stores, their transports."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import attrs
import trio

from trionode.errors import LocalError
from trionode.identity.identity import Identity
from trionode.identity.stored import IdentityVault
from trionode.net.transport import Transport, load_transport
from trionode.protocol.identity.identity import Identifier
from trionode.stream.store.base import StreamStore, load_store
from trionode.topology.errors import Problem, SpecError
from trionode.topology.run.resolve import Identifiers, transports_of
from trionode.topology.spec import IdentitySpec, NodeSpec, TopologySpec
from trionode.vault.memory import MemoryVault
from trionode.vault.sqlite import open_sqlite_vault

#: The environment variable that may hold the passphrase of vaults.
PASSPHRASE_VARIABLE = "TRIONODE_PASSPHRASE"  # noqa: S105  # where the passphrase is, not what

#: A transport, or a function that makes one for the node of that name.
TransportOf = Transport | Callable[[str], Transport]


@attrs.frozen(eq=False)
class Prepared:
    """What one node is made of."""

    name: str
    spec: NodeSpec
    identity: Identity
    #: The identifiers of all nodes whose identifiers are known here.
    identifiers: Identifiers
    transports: Sequence[Transport]
    stores: Mapping[str, StreamStore]


async def prepare(
    spec: TopologySpec, names: Sequence[str], transports: Mapping[str, TransportOf], stack: AsyncExitStack
) -> Mapping[str, Prepared]:
    """Open the vaults and stores of some nodes, for as long as the stack is, and make the transports that they need.

    SpecError or another LocalError for what can't be had: an identity that is not the expected one, a transport that lacks a package.
    """
    identities = {name: await _identity(name, spec.nodes[name].identity, stack) for name in names}
    identifiers = await _identifiers(spec, identities)
    return {
        name: Prepared(
            name,
            spec.nodes[name],
            identities[name],
            identifiers,
            _transports(spec, name, transports),
            await _stores(spec.nodes[name], identifiers, stack),
        )
        for name in names
    }


async def _identity(node: str, spec: IdentitySpec, stack: AsyncExitStack) -> Identity:
    """Open a node's vault, and load who it is, or make it."""
    vault: IdentityVault = MemoryVault()
    if spec.vault != "memory":
        passphrase = await _passphrase(node, spec)
        path = spec.vault.removeprefix("sqlite:")
        vault = await stack.enter_async_context(
            open_sqlite_vault(path, passphrase=passphrase, unencrypted=passphrase is None)
        )
    identity = await Identity.load_or_create(vault, spec.name)
    if spec.identifier is not None:
        await _require(node, spec, identity, Identifier.parse(spec.identifier))
    return identity


async def _require(node: str, spec: IdentitySpec, identity: Identity, expected: Identifier) -> None:
    """Compare an identity with the identifier that it has to have, be it that of either generation."""
    found = identity.identifier
    if expected.classic:
        found = (await identity.classic()).identifier
    if found != expected:
        told = (
            f"the identity {identity.name!r} in the vault {spec.vault} is {found}, and not {expected}: "
            f"write its identifier here, or use the vault that has the expected one"
        )
        raise SpecError([Problem(("nodes", node, "identity", "identifier"), told)])


async def _passphrase(node: str, spec: IdentitySpec) -> str | None:
    """Return what a vault's file is sealed with; None where the spec says that it isn't."""
    path = ("nodes", node, "identity", "passphrase_file")
    if spec.unencrypted:
        if spec.passphrase_file is not None:
            raise SpecError([Problem(path, "a vault that is unencrypted has no passphrase: leave out one of the two")])
        return None
    if spec.passphrase_file is not None:
        try:
            return (await trio.Path(spec.passphrase_file).read_text(encoding="utf-8")).removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError([Problem(path, f"the passphrase can't be read: {error}")]) from error
    if passphrase := os.environ.get(PASSPHRASE_VARIABLE):
        return passphrase
    told = (
        f'the vault {spec.vault} is sealed with a passphrase: give it by passphrase_file = "FILE" or {PASSPHRASE_VARIABLE}, '
        f"or write unencrypted = true to let whoever can read the file have its keys"
    )
    raise SpecError([Problem(path[:-1], told)])


async def _identifiers(spec: TopologySpec, identities: Mapping[str, Identity]) -> Identifiers:
    """Return by which identifiers each node is known: what its vault says, or for one that doesn't run here what the spec says."""
    speaks_classic = any(
        any("classic" in each.protocol_versions for each in node.secure_channel_listeners.values())
        or any(each.protocol_version == "classic" for each in node.secure_channels.values())
        for node in spec.nodes.values()
    )
    known: dict[str, tuple[Identifier, ...]] = {}
    for name, node in spec.nodes.items():
        identity = identities.get(name)
        if identity is not None:
            known[name] = (identity.identifier,)
            if speaks_classic:
                known[name] += ((await identity.classic()).identifier,)
        elif node.identity.identifier is not None:
            known[name] = (Identifier.parse(node.identity.identifier),)
    return known


def _transports(spec: TopologySpec, name: str, given: Mapping[str, TransportOf]) -> list[Transport]:
    """Make the transports that a node needs, and all that were given."""
    made: list[Transport] = []
    for each in sorted({*transports_of(spec, name), *given}):
        if each in given:
            own = given[each]
            transport = own if isinstance(own, Transport) else own(name)
            if transport.name != each:
                raise LocalError(
                    f"transports[{each!r}] is a transport of the name {transport.name!r}: give it under its own name, and let `swap` change the places"
                )
            made.append(transport)
        else:
            made.append(load_transport(each, **spec.nodes[name].transports.get(each, {})))
    return made


async def _stores(spec: NodeSpec, identifiers: Identifiers, stack: AsyncExitStack) -> dict[str, StreamStore]:
    """Open a node's stores, and make the streams there that belong to somebody."""
    stores: dict[str, StreamStore] = {}
    for name, service in spec.stream_services.items():
        stores[name] = store = await stack.enter_async_context(
            load_store(service.store.address, **service.store.options)
        )
        for stream, owner in service.owners.items():
            (identifier, *_) = identifiers.get(owner) or (Identifier.parse(owner),)
            first = await store.create(stream, identifier.value.hex())
            if first != identifier.value.hex():
                raise LocalError(
                    f"the stream {stream} in {service.store.address} belongs to {first or 'nobody'} already, and not to {owner}"
                )
    return stores
