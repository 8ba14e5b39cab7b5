"""Wrong use of the public interface raises an error that says what to do."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from trionode import Address, Mailbox, Node, Route, open_node
from trionode.errors import ClosedError, ConfigError, UnknownAddressError
from trionode.workers import echoer

Verb = Callable[[Node, Any], Awaitable[object]]


async def open_a_node() -> None:
    async with open_node("loopback"):
        pass


def test_asyncio_run_is_refused_with_advice() -> None:
    with pytest.raises(ConfigError, match=r"runs on Trio.*call trio.run\(main\)"):
        asyncio.run(open_a_node())


def test_a_coroutine_driven_by_hand_raises_an_error() -> None:
    opening = open_a_node()
    with pytest.raises(ConfigError, match=r"call trio.run\(main\)"):
        opening.send(None)


@pytest.mark.parametrize(
    "route",
    [Route("echoer"), "echoer", Address("echoer"), ["echoer"], ("echoer",), [Route("echoer")]],
    ids=["Route", "str", "Address", "list", "tuple", "list of Routes"],
)
async def test_a_route_may_be_a_route_a_hop_or_a_list_of_hops(route: Any) -> None:
    async with open_node("loopback") as node:
        await node.start_worker("echoer", echoer)
        assert (await node.ask(route, "hello")).text == "hello"
        async with node.open_mailbox() as mailbox:
            await mailbox.send(route, "hello")
            assert (await mailbox.receive()).text == "hello"


async def test_a_list_of_hops_begins_with_a_transport_address_or_a_link() -> None:
    async with open_node("loopback") as alice, open_node("loopback") as bob:
        await bob.listen("loopback:misuse")
        await bob.start_worker("echoer", echoer, allow=lambda _: True)
        assert (await alice.ask(["loopback:misuse", "echoer"], "hello")).text == "hello"
        link = await alice.connect("loopback:misuse")
        assert (await alice.ask([link, "echoer"], "hello")).text == "hello"


SENDS: dict[str, Verb] = {
    "send": lambda node, route: node.send(route, b""),
    "ask": lambda node, route: node.ask(route, b""),
    "open_inlet": lambda node, route: node.open_inlet("127.0.0.1:0", route),
    "open_relay": lambda node, route: node.open_relay("loopback:hub", to=route),
}


NOT_ROUTES: list[Any] = [7, None, b"echoer", [7], {"echoer"}]
#: Without a route, `open_relay` relays to this node.
MISUSES = [(verb, route) for verb in SENDS for route in NOT_ROUTES if (verb, route) != ("open_relay", None)]


@pytest.mark.parametrize(("verb", "route"), MISUSES, ids=repr)
async def test_an_argument_that_is_not_a_route_is_refused_with_advice(verb: str, route: Any) -> None:
    async with open_node("loopback") as node:
        with pytest.raises(ConfigError, match="a hop is an address, a text, a stream, a secure channel or a link, not"):
            await SENDS[verb](node, route)


async def test_an_empty_list_of_hubs_is_refused_with_advice() -> None:
    async with open_node("loopback") as node:
        with pytest.raises(ConfigError, match="at least one hub"):
            await node.open_relay([])
        with pytest.raises(ConfigError, match="at least one hop"):
            await node.open_relay(Route())


async def test_an_empty_route_is_refused_with_advice() -> None:
    async with open_node("loopback") as node:
        with pytest.raises(UnknownAddressError, match="at least one hop"):
            await node.send(Route(), b"")


@pytest.mark.parametrize(
    "body", [bytearray(b"hello"), memoryview(b"hello"), b"hello"], ids=lambda body: type(body).__name__
)
async def test_a_body_can_be_any_bytes(body: Any) -> None:
    async with open_node("loopback") as node:
        await node.start_worker("echoer", echoer)
        assert (await node.ask("echoer", body)).payload == b"hello"


@pytest.mark.parametrize("body", [7, None, {"text": "hello"}, ["hello"]], ids=repr)
async def test_a_body_of_another_type_is_refused_with_advice(body: Any) -> None:
    async with open_node("loopback") as node, node.open_mailbox() as mailbox:
        with pytest.raises(ConfigError, match=f"a body is bytes or a str, and this is {type(body).__name__}"):
            await node.send("echoer", body)
        with pytest.raises(ConfigError, match="encode it first"):
            await mailbox.send("echoer", body)


def sync_worker(mailbox: Mailbox) -> None:
    del mailbox


@pytest.mark.parametrize("worker", [sync_worker, "echoer", None], ids=repr)
async def test_a_worker_that_is_no_async_function_is_refused_and_its_name_stays_free(worker: Any) -> None:
    async with open_node("loopback") as node:
        with pytest.raises(ConfigError, match="a worker is an async function"):
            await node.start_worker("worker", worker)
        await node.start_worker("worker", echoer)


async def test_a_method_called_after_the_block_raises_closed_error() -> None:
    async with open_node("loopback") as node:
        pass
    with pytest.raises(ClosedError, match="this node's block has ended"):
        await node.start_worker("echoer", echoer)


async def test_the_error_for_an_unknown_transport_lists_those_of_the_node() -> None:
    async with open_node("loopback") as node:
        with pytest.raises(
            ConfigError, match=r"\['loopback'\], but 'tcp:127.0.0.1:1' needs 'tcp': name it in open_node"
        ):
            await node.connect("tcp:127.0.0.1:1")
        with pytest.raises(
            ConfigError, match=r"expected a transport address such as tcp:127.0.0.1:4000; this is 'echoer'"
        ):
            await node.connect("echoer")


def test_trio_run_works() -> None:
    trio.run(open_a_node)
