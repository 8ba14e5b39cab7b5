"""Trust and access by attributes in a topology: checked, run, substituted and proven."""

from pathlib import Path

import pytest
import trio

from tests.support.running_parts import running
from trionode import Identity, MemoryVault
from trionode.errors import AnswerTimeout, RemoteError
from trionode.topology import SpecError, TopologySpec, parse_topology, swap
from trionode.topology.credentials import is_held
from trionode.vault.sqlite import open_sqlite_vault
from trionode.verify import verify

#: Seconds after which a test has failed. Vaults in files use threads, for which no virtual clock waits.
STALL_TIMEOUT = 60.0


async def topology_of(folder: Path, roles: dict[str, str], *, listener: str, worker: str) -> str:
    """A topology in which Bob asks for attributes, and others have credentials with a role."""
    authority = await Identity.create(MemoryVault(), "authority")
    nodes = []
    for name in ("bob", *roles):
        async with open_sqlite_vault(folder / f"{name}.db", unencrypted=True) as vault:
            identifier = (await Identity.create(vault)).identifier
        credentials = [authority.issue_credential(identifier, {"role": roles[name]})] if roles.get(name) else []
        nodes.append(f"""
[nodes.{name}.identity]
vault = "sqlite:{folder / name}.db"
unencrypted = true
identifier = "{identifier}"
credentials = {credentials}
""")
        if name != "bob":
            nodes.append(
                f'[nodes.{name}.secure_channels.bob]\nto = ["loopback:bob", "api"]\ntrust.nodes = "bob"\n'
                f'[flows.{name}]\nfrom = "{name}"\nto = ["@bob", "echoer"]\n'
            )
    return (
        "".join(nodes)
        + f"""
[nodes.bob]
listen = "loopback:bob"
secure_channel_listeners.api.trust = {listener}
workers.echoer = {{ run = "echoer", allow = {worker} }}
""".replace("AUTHORITY", f'authority = "{authority.export()}"')
    )


MEMBERS = '{ AUTHORITY, attributes = { role = "member" } }'
ANY_ROLE = '{ AUTHORITY, attributes = { role = "*" } }'


async def answers(spec: TopologySpec | str, *names: str) -> dict[str, bool]:
    """Whether Bob's echoer answers each of these nodes."""
    found = {}
    async with running(spec) as topology:
        for name in names:
            try:
                await topology[name].ask(["@bob", "echoer"], "hello", timeout=1)
                found[name] = True
            except (AnswerTimeout, RemoteError):
                found[name] = False
    return found


@pytest.mark.parametrize(
    ("listener", "worker", "guest"),
    [(ANY_ROLE, MEMBERS, False), (ANY_ROLE, ANY_ROLE, True), ('"everyone"', MEMBERS, False)],
)
async def test_peers_are_admitted_by_their_credentials(tmp_path: Path, listener: str, worker: str, guest: bool) -> None:
    text = await topology_of(tmp_path, {"alice": "member", "carol": "guest"}, listener=listener, worker=worker)
    with trio.fail_after(STALL_TIMEOUT):
        assert await answers(text, "alice", "carol") == {"alice": True, "carol": guest}
        # In memory all identities are new, and nodes with a credential are named instead.
        in_memory = swap(parse_topology(text), vault="memory")
        assert await answers(in_memory, "alice", "carol") == {"alice": True, "carol": guest}
        assert in_memory.nodes["bob"].workers["echoer"].allow.authority is None


async def test_the_proof_knows_which_nodes_hold_a_credential(tmp_path: Path) -> None:
    text = await topology_of(
        tmp_path, {"alice": "member", "carol": "guest", "dave": ""}, listener=ANY_ROLE, worker=MEMBERS
    )
    spec = parse_topology(text)
    allow = spec.nodes["bob"].workers["echoer"].allow
    assert [name for name, node in spec.nodes.items() if is_held(allow, node.identity)] == ["alice"]
    report = verify(spec)
    delivered = {flow.name: flow.path.arrives for flow in report.analysis.flows}
    assert delivered == {"alice": True, "carol": False, "dave": False}


async def test_wrong_credentials_and_authorities_are_reported(tmp_path: Path) -> None:
    text = await topology_of(tmp_path, {"alice": "member", "carol": "guest"}, listener=MEMBERS, worker=MEMBERS)
    alices, carols = (each.split("'")[1] for each in text.splitlines() if each.startswith("credentials = ['"))
    for wrong, message in (
        (text.replace(alices, carols), "this credential is for I"),
        (text.replace(alices, alices[:-2]), "not a credential|a credential is hex"),
        (text.replace('authority = "81', 'authority = "82'), "trionode identity export"),
        (text.replace("trust = { authority", "trust = { nodes = 'alice', x_authority"), "authority"),
    ):
        with pytest.raises(SpecError, match=message):
            parse_topology(wrong)
    with pytest.raises(SpecError, match="attributes need an authority"):
        parse_topology("[nodes.bob]\nsecure_channel_listeners.api.trust = { nodes = 'bob', attributes = { a = 'b' } }")
