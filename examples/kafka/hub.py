"""A hub that keeps streams in Kafka or in a file: `python hub.py [kafka:HOST:PORT | sqlite:PATH] [tcp:HOST:PORT]`."""

import sys

import trio

from trionode import load_store, open_node


async def main(store_at: str, at: str) -> None:
    async with load_store(store_at) as store, open_node("tcp") as node:
        await node.serve_streams(store)
        print(f"listening on {await node.listen(at)}", flush=True)
        await trio.sleep_forever()


store_at, at = [*sys.argv[1:], *("kafka:127.0.0.1:9092", "tcp:127.0.0.1:4000")[len(sys.argv) - 1 :]]
trio.run(main, store_at, at)
