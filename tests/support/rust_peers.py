"""Rust peers as processes: built once a session from `tests/interop/rust`, and ended with the test."""

import faulthandler
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from tests.support.processes import Running, end_all

SOURCES = Path(__file__).parents[1] / "interop" / "rust"

#: Seconds for a build: it takes minutes on two cores, and downloads some hundred crates the first time.
BUILD_SECONDS = 1800.0


@cache
def build(protocol_version: str) -> Path | str:
    """The program `peer` of a protocol version, "current" or "classic"; or one line that says why there is none, and
    what to do.
    """
    cargo = shutil.which("cargo")
    if cargo is None:
        return "no Rust peers: cargo is not on the PATH; install Rust from https://rustup.rs and run again"
    kept = os.environ.get("TRIONODE_INTEROP_TARGET", Path.home() / ".cache" / "trionode" / "interop")
    target = Path(kept) / protocol_version
    # The first build takes longer than any test may, and is no hang.
    faulthandler.cancel_dump_traceback_later()
    try:
        subprocess.run(
            [cargo, "build", "--locked"],
            cwd=SOURCES / protocol_version,
            env={**os.environ, "CARGO_TARGET_DIR": str(target), "CARGO_TERM_COLOR": "never"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BUILD_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return f"no {protocol_version} Rust peer: its build took over {BUILD_SECONDS:g} s; run `cargo build --locked` in tests/interop/rust/{protocol_version}"
    except subprocess.CalledProcessError as failure:
        said = failure.stderr.decode(errors="replace").splitlines()
        errors = [line for line in said if line.startswith("error")] or said[-1:] or ["it says nothing"]
        return f"no {protocol_version} Rust peer: run `cargo build --locked` in tests/interop/rust/{protocol_version} to see why: {errors[0]}"
    return target / "debug" / "peer"


class Peers:
    """Starts subcommands of one protocol version's `peer`; made by `open_peers`."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._running: list[Running] = []

    async def start(self, *arguments: str) -> Running:
        """Start a subcommand."""
        complaints = self._folder / f"stderr.{len(self._running)}"
        with complaints.open("wb") as file:
            process = await trio.lowlevel.open_process(
                [str(self._program), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file
            )
        running = Running(process, complaints)
        self._running.append(running)
        return running

    async def end(self) -> None:
        """End all that still runs."""
        await end_all(self._running)


@asynccontextmanager
async def open_peers(program: Path) -> AsyncIterator[Peers]:
    """Processes of a program that are gone at the end of the block."""
    with TemporaryDirectory() as folder:
        peers = Peers(program, Path(folder))
        try:
            yield peers
        finally:
            await peers.end()


async def reports(peer: Running, *words: str) -> Sequence[str]:
    """What a peer's next lines say after these words, in this order."""
    said = []
    for word in words:
        line = await peer.line()
        first, _, rest = line.partition(" ")
        assert first == word, f"expected a line that begins with {word!r}, came {line!r}"
        said.append(rest)
    return said


def program_of(protocol_version: str) -> Path:
    """The program of a protocol version; skips the test that asks for it where there is none."""
    built = build(protocol_version)
    if isinstance(built, str):
        pytest.skip(built)
    return built
