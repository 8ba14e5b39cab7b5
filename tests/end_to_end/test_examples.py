"""The examples behave like the commands."""

from pathlib import Path

import pytest
import trio

from tests.support.processes import ROOT, Commands, addresses, listening
from trionode.testing import KafkaBroker

EXAMPLES = ROOT / "examples" / "kafka"
if not EXAMPLES.is_dir():
    pytest.skip("no checkout around these tests: the examples are tested there", allow_module_level=True)

MESSAGES = ["hello", "", "Привет, 你好 ✨"]


async def converse_over(folder: Path, store: str) -> None:
    with trio.fail_after(60):
        async with Commands(folder) as commands:
            hub = await commands.start(store, "tcp:127.0.0.1:0", program=[EXAMPLES / "hub.py"])
            at = await listening(hub)
            bob = await commands.start(at, program=[EXAMPLES / "bob.py"])
            alice = await commands.start(at, program=[EXAMPLES / "alice.py"])
            to_alice, to_bob, identifier = await addresses(bob)
            await alice.write(to_alice, to_bob, *MESSAGES)
            await alice.close_input()
            assert await alice.rest() == [
                f"[✓] End-to-end encrypted secure channel was established with {identifier}.",
                *[f"Alice received an echo: {message}" for message in MESSAGES],
            ]
            assert await alice.end() == 0, alice.complaints
            assert [await bob.line() for _ in MESSAGES] == [
                f"[✓] Address: 0#echoer, Received: {message}" for message in MESSAGES
            ]


async def test_the_examples_talk_over_sqlite(tmp_path: Path) -> None:
    await converse_over(tmp_path, f"sqlite:{tmp_path / 'streams.db'}")


@pytest.mark.kafka
async def test_the_examples_talk_over_kafka(tmp_path: Path, kafka_broker: KafkaBroker) -> None:
    await converse_over(tmp_path, f"kafka:{kafka_broker.bootstrap}")
