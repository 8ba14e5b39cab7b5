"""A Kafka of three brokers on the loopback interface, from the jars of the `kafka_broker` fixture."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trionode.testing import KafkaBroker
from trionode.testing.kafka import _free_ports, _prepared
from trionode.testing.kafka_setup import JVM, class_path, properties

#: Any cluster id of 22 base64 characters.
CLUSTER = "trionode-cluster-AAAAA"
BROKERS = 3
#: Seconds for one JVM that formats a storage.
FORMAT_SECONDS = 120.0


class KafkaCluster:
    """Three brokers, each also a controller. Topics have three replicas, and two of them must confirm a record."""

    def __init__(self, brokers: list[KafkaBroker]) -> None:
        self.brokers = brokers
        self.bootstrap = ",".join(broker.bootstrap for broker in brokers)

    def broker(self, node_id: int) -> KafkaBroker:
        return self.brokers[node_id - 1]


@contextmanager
def run_cluster() -> Iterator[KafkaCluster]:
    """Run a new cluster for the length of a block. It blocks: use it in a fixture or a thread."""
    java = shutil.which("java")
    assert java is not None
    cache = _prepared(java, secure=False)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trionode-cluster-")))
        controllers = _free_ports(BROKERS)
        brokers = []
        for number in range(BROKERS):
            home = folder / str(number)
            home.mkdir()
            broker = KafkaBroker(home, java=java, cache=cache)
            port = int(broker.bootstrap.rpartition(":")[2])
            _configure(home, number, port, controllers)
            brokers.append(broker)
        with ThreadPoolExecutor(BROKERS) as pool:
            list(pool.map(lambda broker: _format(broker._folder, java, cache), brokers))
            for broker in brokers:
                stack.callback(broker.kill)
            list(pool.map(KafkaBroker.start, brokers))
        yield KafkaCluster(brokers)


def _configure(home: Path, number: int, port: int, controllers: list[int]) -> None:
    voters = ",".join(f"{each + 1}@127.0.0.1:{at}" for each, at in enumerate(controllers))
    text = properties(home / "data", port, controllers[number])
    replaced = {
        "node.id": str(number + 1),
        "controller.quorum.voters": voters,
        "offsets.topic.replication.factor": "3",
        "min.insync.replicas": "2",
        "default.replication.factor": "3",
    }
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in replaced]
    lines += [f"{name}={value}" for name, value in replaced.items()]
    (home / "server.properties").write_text("\n".join([*lines, ""]))


def _format(home: Path, java: str, cache: Path) -> None:
    shutil.rmtree(home / "data")
    tool = [java, *JVM, "-cp", class_path(cache), "kafka.tools.StorageTool"]
    subprocess.run(
        [*tool, "format", "-t", CLUSTER, "-c", str(home / "server.properties")],
        check=True,
        capture_output=True,
        timeout=FORMAT_SECONDS,
    )
