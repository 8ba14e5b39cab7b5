"""What is this transport's own: the socket's file."""

import socket
import stat
from pathlib import Path

import pytest
import trio

from trionode import ConnectionLost, LocalError, load_transport, open_node
from trionode_unix import Unix


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_the_file_permits_what_it_is_told(mode: int, folder: Path) -> None:
    async with open_node(load_transport("unix", mode=mode)) as node:
        await node.listen(f"unix:{folder}/hub.sock")
        assert stat.S_IMODE((folder / "hub.sock").stat().st_mode) == mode


async def test_the_file_of_a_program_that_was_killed_gives_way(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"{folder}/hub.sock")
    async with open_node("unix") as node:
        with pytest.raises(ConnectionLost, match=r"hub.sock: Connection refused\. Is a node there"):
            await node.connect(f"unix:{folder}/hub.sock")
        await node.listen(f"unix:{folder}/hub.sock")


async def test_a_file_that_is_no_socket_and_a_folder_that_is_missing_are_left_as_they_are(folder: Path) -> None:
    (folder / "notes").write_text("mine")
    async with open_node("unix") as node:
        for endpoint, why in (("notes", "Address already in use"), ("no/hub.sock", "No such file or directory")):
            with pytest.raises(LocalError, match=f"can't listen at unix:{folder}/{endpoint}: {why}"):
                await node.listen(f"unix:{folder}/{endpoint}")
    assert (folder / "notes").read_text() == "mine"


async def test_a_server_of_another_kind_is_no_node(folder: Path) -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(f"{folder}/http.sock")
    listening.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, http, [trio.SocketListener(listening)])
        with pytest.raises(ConnectionLost, match=r"http.sock is no node: .*began with 48"):
            await Unix().connect(f"{folder}/http.sock")
        nursery.cancel_scope.cancel()
