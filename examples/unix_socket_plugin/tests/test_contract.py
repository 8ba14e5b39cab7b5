"""The contract of transports, and two nodes."""

import os
from pathlib import Path

import pytest
import trio

import trionode_unix
from trionode import Route, from_anywhere, open_node
from trionode.testing.transport import CHECKS, SMALL, Check, Harness, run_check
from trionode.workers import echoer
from trionode_unix import Unix


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_unix_sockets_keep_the_contract(check: Check, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trionode_unix, "CLOSE_SECONDS", 0.1)  # one check waits for it
    await run_check(check, Harness(Unix(), f"{folder}/hub.sock", f"{folder}/none.sock", Unix(max_frame=SMALL)))
    assert not os.listdir(folder)  # noqa: PTH208  # the alternative uses a thread


async def test_two_nodes_talk_over_a_socket_found_by_its_entry_point(folder: Path) -> None:
    with trio.fail_after(5):
        async with open_node("unix") as bob, open_node("unix") as alice:
            at = await bob.listen(f"unix:{folder}/bob.sock")
            await bob.start_worker("echoer", echoer, allow=from_anywhere)
            assert (await alice.ask(Route(at, "echoer"), "hello")).text == "hello"
