"""The socket's file, which only this transport has."""

import socket
import stat
from pathlib import Path

import pytest
import trio

from trionode import ConnectionLost, LocalError, load_transport, open_node
from trionode_unix import Unix


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_the_file_has_the_permissions_of_the_option(mode: int, folder: Path) -> None:
    async with open_node(load_transport("unix", mode=mode)) as node:
        await node.listen(f"unix:{folder}/hub.sock")
        assert stat.S_IMODE((folder / "hub.sock").stat().st_mode) == mode


async def test_the_file_of_a_killed_program_is_replaced(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"{folder}/hub.sock")
    async with open_node("unix") as node:
        with pytest.raises(ConnectionLost, match=r"hub.sock: Connection refused\. Is a node there"):
            await node.connect(f"unix:{folder}/hub.sock")
        await node.listen(f"unix:{folder}/hub.sock")


async def test_other_files_are_not_replaced_and_a_missing_folder_is_an_error(folder: Path) -> None:
    (folder / "notes").write_text("mine")
    async with open_node("unix") as node:
        for endpoint, why in (("notes", "Address already in use"), ("no/hub.sock", "No such file or directory")):
            with pytest.raises(LocalError, match=f"can't listen at unix:{folder}/{endpoint}: {why}"):
                await node.listen(f"unix:{folder}/{endpoint}")
    assert (folder / "notes").read_text() == "mine"


async def test_another_server_is_not_a_node(folder: Path) -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(f"{folder}/http.sock")
    listening.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, http, [trio.SocketListener(listening)])
        with pytest.raises(ConnectionLost, match=r"http.sock is not a node: .*began with 48"):
            await Unix().connect(f"{folder}/http.sock")
        nursery.cancel_scope.cancel()
