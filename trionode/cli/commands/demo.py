"""`trionode demo`: hub, Bob and Alice in one process, over real TCP, with what each of them sees."""

import os
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import attrs
import click
import trio

from trionode.cli.runner import run
from trionode.cli.stores import open_store, store_options
from trionode.cli.terminal import Lines, Output, payload_text, printable, say
from trionode.errors import AnswerTimeout, MessageTooLargeError
from trionode.identity.identity import Identity
from trionode.identity.trust import trust_only
from trionode.node.node import Node, open_node
from trionode.protocol.stream.messages import Record
from trionode.protocol.wire.route import Route
from trionode.routing.mailbox import Mailbox, Worker
from trionode.stream.client import Stream, unique
from trionode.stream.store.base import StreamStore

#: Messages of the scripted conversation by default.
MESSAGES = 3
#: Bytes of a stored record that are printed.
PRINTED_BYTES = 96
#: Bytes in one row of them.
ROW = 32
#: Bytes of one read of the store.
READ_BYTES = 1 << 20
#: Bytes of the shortest text that is searched in records. A shorter text can be in ciphertext by chance.
MIN_SECRET = 6
#: The address of Bob's worker, which only the two ends may see.
WORKER = "echoer"

_COLORS = {"hub": "yellow", "bob": "green", "alice": "cyan", "": "magenta"}


@click.command()
@click.option(
    "--store",
    metavar="STORE",
    help="Where the hub keeps the streams, such as kafka:HOST:PORT. By default in a temporary SQLite file.",
)
@store_options
@click.option(
    "--messages",
    type=click.IntRange(1),
    metavar="N",
    help=f"Send N messages and end, even on a terminal. By default {MESSAGES} without a terminal.",
)
def demo(*, store: str | None, store_options: dict[str, object], messages: int | None) -> None:
    """Watch Alice and Bob talk through a hub, end to end encrypted.

    All three run in this process and talk over TCP on this machine. On a terminal you type Alice's messages; otherwise
    they are scripted. The last line is the verdict.
    """
    with tempfile.TemporaryDirectory(prefix="trionode-demo-", ignore_cleanup_errors=True) as folder:
        run(partial(_demo, store or f"sqlite:{Path(folder) / 'hub.db'}", store_options, messages))


async def _demo(
    store_spec: str, store_options: dict[str, object], messages: int | None, working: trio.CancelScope
) -> bool:
    report = Reporter()
    async with (
        open_store(store_spec, store_options) as store,
        open_node("tcp") as hub,
        open_node("tcp") as bob,
        open_node("tcp") as alice,
    ):
        succeeded = False
        with working:
            at = Route(await hub.listen("tcp:127.0.0.1:0"))
            await hub.serve_streams(store)
            await report("hub", f"listens on {at}, keeps the streams in {store_spec}, and has no key")
            succeeded = await _converse(report, _Scene(store, at, bob, alice), messages)
    return succeeded


@attrs.frozen
class _Scene:
    """The nodes, the store and the route to the hub."""

    store: StreamStore
    hub: Route
    bob: Node
    alice: Node


async def _converse(report: "Reporter", scene: _Scene, messages: int | None) -> bool:
    store, at, bob, alice = scene.store, scene.hub, scene.bob, scene.alice
    bob_id, alice_id = await Identity.create(bob.vault), await Identity.create(alice.vault)
    to_alice, to_bob = unique("bob_to_alice"), unique("alice_to_bob")
    await bob.start_worker(WORKER, echo_and_report(report))
    await bob.serve_secure_channels("listener", bob_id, trust=trust_only(alice_id.identifier))
    bobs = await bob.open_stream(at, sends=to_alice, receives=to_bob)
    await report("bob", f"is {bob_id.identifier}, and made two streams on the hub:")
    await report("", f"{to_alice} and {to_bob}")
    alices = await alice.open_stream(at, sends=to_bob, receives=to_alice)
    channel = await alice.open_secure_channel(Route(alices, "listener"), alice_id, trust=trust_only(bob_id.identifier))
    await report("alice", f"is {alice_id.identifier}")
    await report("alice", "has a secure channel to Bob through both streams; each has proven its identity to the other")
    texts: list[str] = []
    echoed = 0
    async for text in _texts(report, messages):
        await report("alice", f"sends to Bob's worker {WORKER!r}: {printable(text)}")
        texts.append(text)
        began = time.perf_counter()
        try:
            echo = await alice.ask(Route(channel, WORKER), text)
        except (AnswerTimeout, MessageTooLargeError) as error:
            await report("alice", f"has no echo: {error}")
            continue
        echoed += echo.text == text
        await report(
            "alice", f"received an echo after {(time.perf_counter() - began) * 1000:.1f} ms: {payload_text(echo)}"
        )
        if len(texts) == 1:
            await _print_newest(report, store, bobs)
    records = [*await _stored(store, bobs), *await _stored(store, alices)]
    private = _hide(records, [*texts, WORKER])
    await channel.aclose()
    await alices.aclose()
    await bobs.aclose()
    succeeded = private and echoed == len(texts) > 0
    verdict = f"{echoed} of {len(texts)} echoes came, and the {len(records)} records that the hub stored hold {'none' if private else 'SOME'} of it in the clear"
    await report(
        "", click.style(f"{'✓' if succeeded else '✗'} {verdict}", fg="green" if succeeded else "red", bold=True)
    )
    return succeeded


async def _print_newest(report: "Reporter", store: StreamStore, bobs: Stream) -> None:
    record = (await _stored(store, bobs))[-1]
    await report(
        "hub",
        f"stored this as record {record.index} of {bobs.receives}, {len(record.message)} bytes, and sees no more than this:",
    )
    shown = record.message[:PRINTED_BYTES]
    for start in range(0, len(shown), ROW):
        await report("", click.style(shown[start : start + ROW].hex(" ", 2), dim=True))
    if len(record.message) > PRINTED_BYTES:
        await report("", click.style(f"… and {len(record.message) - PRINTED_BYTES} bytes more", dim=True))


async def _stored(store: StreamStore, reader: Stream) -> list[Record]:
    """Return all records of a stream as they are in the store."""
    records: list[Record] = []
    index, end = 0, reader.position or 0
    while index < end:
        found = await store.read(reader.receives, index, limit=1000, max_bytes=READ_BYTES)
        records += found
        index = found[-1].index + 1
    return records


def _hide(records: list[Record], secrets: list[str]) -> bool:
    searched = [secret.encode() for secret in secrets if len(secret.encode()) >= MIN_SECRET]
    return bool(records) and not any(secret in record.message for record in records for secret in searched)


async def _texts(report: "Reporter", messages: int | None) -> AsyncIterator[str]:
    """Yield what Alice sends: scripted texts, or what the user types."""
    typed = messages is None and os.isatty(0) and os.isatty(1)
    for number in range(1, (1 if typed else messages or MESSAGES) + 1):
        yield f"Hello, Bob! This is message {number}. Привет, 你好 ✨"
    if not typed:
        return
    lines = Lines()
    while True:
        await report.prompt("Your message to Bob (an empty line ends): ")
        line = await anext(lines, None)
        if line is None or not line.length:
            await report("", "")
            return
        if line.is_whole:
            yield line.content.decode(errors="replace")
        else:
            say(f"this line is too long: {line.length} bytes")


def echo_and_report(report: "Reporter") -> Worker:
    """Return Bob's worker."""

    async def echo(mailbox: Mailbox) -> None:
        async for message in mailbox:
            await report("bob", f"received: {payload_text(message)}")
            await mailbox.reply(message, message.payload)

    return echo


class Reporter:
    """Prints lines that begin with the name of the speaker, in colour on a terminal."""

    def __init__(self) -> None:
        self._output = Output()
        self._colours = os.isatty(1) and "NO_COLOR" not in os.environ

    async def __call__(self, speaker: str, text: str) -> None:
        """Print what a node does or sees."""
        text = click.style(f"{speaker:>6} ", fg=_COLORS[speaker], bold=True) + text
        await self._output.line(text if self._colours else click.unstyle(text))

    async def prompt(self, text: str) -> None:
        """Print a prompt."""
        await self._output.write(click.style(text, bold=True) if self._colours else text)
