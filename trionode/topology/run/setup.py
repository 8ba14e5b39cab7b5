"""The identities, stores and transports of nodes, which outlive a crash of the node."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import attrs
import trio

from trionode.errors import ConfigError, IdentityError, LocalError, VaultError
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

#: The environment variable with the passphrase of vaults.
PASSPHRASE_VARIABLE = "TRIONODE_PASSPHRASE"  # noqa: S105  # the name of the variable, not the passphrase

#: A transport, or a function that makes one for the name of a node.
TransportOf = Transport | Callable[[str], Transport]


@attrs.frozen(eq=False)
class Prepared:
    """What one node needs to run."""

    name: str
    spec: NodeSpec
    identity: Identity
    #: The known identifiers of all nodes.
    identifiers: Identifiers
    transports: Sequence[Transport]
    stores: Mapping[str, StreamStore]


async def prepare(
    spec: TopologySpec, names: Sequence[str], transports: Mapping[str, TransportOf], stack: AsyncExitStack
) -> Mapping[str, Prepared]:
    """Open the vaults and stores of some nodes on a stack, and make their transports.

    SpecError or another LocalError if something is missing or wrong, such as an identity or a package.
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
    """Open a node's vault, and load or create its identity."""
    vault: IdentityVault = MemoryVault()
    if spec.vault != "memory":
        passphrase = await _passphrase(node, spec)
        path = spec.vault.removeprefix("sqlite:")
        vault = await stack.enter_async_context(
            open_sqlite_vault(path, passphrase=passphrase, unencrypted=passphrase is None)
        )
    identity = await Identity.load_or_create(vault, spec.name)
    if spec.identifier is not None:
        await _check_identifier(node, spec, identity, Identifier.parse(spec.identifier))
    for index, credential in enumerate(spec.credentials):
        try:
            await identity.add_credential(credential)
        except (IdentityError, VaultError) as error:
            raise SpecError([Problem(("nodes", node, "identity", "credentials", index), str(error))]) from error
    return identity


async def _check_identifier(node: str, spec: IdentitySpec, identity: Identity, expected: Identifier) -> None:
    """Compare an identity with its expected identifier, current or classic."""
    found = identity.identifier
    if expected.classic:
        found = (await identity.classic()).identifier
    if found != expected:
        text = (
            f"expected {expected}, but the identity {identity.name!r} in the vault {spec.vault} is {found}: "
            f"write that identifier here, or use another vault"
        )
        raise SpecError([Problem(("nodes", node, "identity", "identifier"), text)])


async def _passphrase(node: str, spec: IdentitySpec) -> str | None:
    """Return the passphrase of a vault, None if the vault is unencrypted."""
    path = ("nodes", node, "identity", "passphrase_file")
    if spec.unencrypted:
        if spec.passphrase_file is not None:
            raise SpecError([Problem(path, "an unencrypted vault has no passphrase: remove one of the two keys")])
        return None
    if spec.passphrase_file is not None:
        try:
            return (await trio.Path(spec.passphrase_file).read_text(encoding="utf-8")).removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError([Problem(path, f"the passphrase can't be read: {error}")]) from error
    if passphrase := os.environ.get(PASSPHRASE_VARIABLE):
        return passphrase
    text = (
        f'the vault {spec.vault} needs a passphrase: give it by passphrase_file = "FILE" or {PASSPHRASE_VARIABLE}, '
        f"or write unencrypted = true, which leaves the keys readable for everyone who can read the file"
    )
    raise SpecError([Problem(path[:-1], text)])


async def _identifiers(spec: TopologySpec, identities: Mapping[str, Identity]) -> Identifiers:
    """Return the identifiers of each node: from its vault, or from the spec if the node runs elsewhere."""
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
    """Return the transports that a node needs, and all that the program brings."""
    made: list[Transport] = []
    for each in sorted({*transports_of(spec, name), *given}):
        if each in given:
            own = given[each]
            transport = own if isinstance(own, Transport) else own(name)
            if transport.name != each:
                raise ConfigError(
                    f"transports[{each!r}] has the name {transport.name!r}: give it under its own name, and change the addresses by `swap`"
                )
            made.append(transport)
        else:
            made.append(load_transport(each, **spec.nodes[name].transports.get(each, {})))
    return made


async def _stores(spec: NodeSpec, identifiers: Identifiers, stack: AsyncExitStack) -> dict[str, StreamStore]:
    """Open a node's stores, and create the streams that have owners."""
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
                    f"the stream {stream} in {service.store.address} {f'has the owner {first}' if first else 'has no owner'}, not {owner}"
                )
    return stores
