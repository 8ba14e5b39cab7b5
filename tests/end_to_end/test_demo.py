"""The demo, scripted and typed, on SQLite and on Kafka."""

import os
import pty
import re
import signal
import socket
from pathlib import Path

import pytest
import trio

from tests.support.processes import Commands, Running
from trionode.testing import KafkaBroker

#: Seconds in which the whole demo has ended, on a busy machine.
DEMO_SECONDS = 30


async def ended(demo: Running) -> tuple[int, list[str]]:
    with trio.fail_after(DEMO_SECONDS):
        lines = await demo.rest()
        return await demo.end(), lines


async def test_the_scripted_demo_shows_echoes_a_stored_record_and_a_verdict(tmp_path: Path) -> None:
    async with Commands(tmp_path) as commands:
        code, lines = await ended(await commands.start("demo"))
    assert code == 0
    assert "\x1b" not in "".join(lines)
    assert len([line for line in lines if line.startswith(" alice received an echo after ")]) == 3
    assert len([line for line in lines if line.startswith("   bob received: Hello, Bob! This is message ")]) == 3
    (stored,) = (at for at, line in enumerate(lines) if line.startswith("   hub stored this as record "))
    assert re.fullmatch(r" +([0-9a-f]{4} )+[0-9a-f]{4}", lines[stored + 1])
    assert re.fullmatch(
        r" +✓ 3 of 3 echoes came, and the \d+ records that the hub stored hold none of it in the clear", lines[-1]
    )


@pytest.mark.kafka
async def test_the_demo_goes_through_a_real_kafka(tmp_path: Path, kafka_broker: KafkaBroker) -> None:
    async with Commands(tmp_path) as commands:
        code, lines = await ended(
            await commands.start("demo", "--store", f"kafka:{kafka_broker.bootstrap}", "--messages", "5")
        )
    assert code == 0
    assert f"kafka:{kafka_broker.bootstrap}" in lines[0]
    assert "✓ 5 of 5 echoes came" in lines[-1]


async def test_the_demo_reports_an_unreachable_kafka(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        async with Commands(tmp_path) as commands:
            demo = await commands.start("demo", "--store", f"kafka:127.0.0.1:{held.getsockname()[1]}")
            code, lines = await ended(demo)
            assert (code, lines) == (1, [])
            (error,) = demo.complaints.splitlines()
            assert error.startswith("error: no Kafka at 127.0.0.1:")


class Terminal:
    """A terminal with a demo in it, and scripted input."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.shown = ""

    async def until(self, text: str) -> None:
        """Read on until a text has been shown."""
        with trio.fail_after(DEMO_SECONDS):
            while text not in self.shown:
                await trio.lowlevel.wait_readable(self.ours)
                self.shown += os.read(self.ours, 65536).decode(errors="replace")

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self.ours, text.encode())

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


async def test_on_a_terminal_messages_are_typed_and_an_empty_line_ends(tmp_path: Path) -> None:
    terminal = Terminal()
    async with Commands(tmp_path) as commands:
        demo = await commands.start("demo", terminal=terminal.theirs)
        await terminal.until("Your message to Bob")
        assert "\x1b[" in terminal.shown
        terminal.type("Hello from a keyboard\n")
        await terminal.until("Your message to Bob")
        assert re.search(r"received an echo after [\d.]+ ms: Hello from a keyboard", terminal.shown)
        terminal.type("\n")
        await terminal.until("2 of 2 echoes came")
        assert await demo.end() == 0
    terminal.close()


async def test_on_a_terminal_a_signal_ends_the_demo(tmp_path: Path) -> None:
    terminal = Terminal()
    async with Commands(tmp_path) as commands:
        demo = await commands.start("demo", terminal=terminal.theirs)
        await terminal.until("Your message to Bob")
        code, seconds = await demo.stopped_by(signal.SIGINT)
        assert (code, seconds < 2) == (130, True)
    terminal.close()
