"""A real Apache Kafka broker for tests: fetched once through Maven, then started in a second or two in a temporary directory."""

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from trionode.errors import LocalError

#: The broker that tests run; a change makes a new cache folder by itself.
KAFKA_VERSION = "4.4.0"

#: The slf4j that this Kafka brings; a binding of another major version would log nothing, and readiness is a log line.
SLF4J_VERSION = "1.7.36"

#: Seconds for Maven on a cold cache (43 MB; measured 5-25 s) before we call it hung.
FETCH_SECONDS = 300.0

#: Seconds for one start: measured 1-3 s, and up to 13 s beside other load.
START_SECONDS = 60.0

#: Seconds that a broker told to stop has to flush (measured 0.3 s) before it is killed.
STOP_SECONDS = 15.0

#: Lines of the broker's log that an error shows.
TAIL_LINES = 25

_READY = "Kafka Server started"
_CLUSTER = "trionode-testing-AAAAA"  # StorageTool wants a cluster id of 22 base64 characters; any will do
_JVM = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>trionode.testing</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>{SLF4J_VERSION}</version></dependency>
  </dependencies>
</project>
"""


class NoKafkaError(LocalError):
    """What a broker needs is not on this machine; the message says in one line how to get it."""


class KafkaBroker:
    """One broker of its own, in KRaft combined mode on free loopback ports; made by `run_kafka`.

    Its methods block (a start takes 1-3 s), so a Trio test calls them through `trio.to_thread.run_sync`. Ports and data stay
    the same over `kill` or `stop` and `start`. Methods raise `LocalError` with the end of the broker's log when it does not come up.
    """

    bootstrap: str  #: "127.0.0.1:PORT", what a client is given
    log: Path  #: everything that the broker has printed, over all its starts

    def __init__(self, folder: Path, *, java: str, cache: Path) -> None:
        self._folder = folder
        self._java = java
        self._cache = cache
        self._process: subprocess.Popen[str] | None = None
        self._printer: threading.Thread | None = None
        self.log = folder / "broker.log"
        port, controller = _free_ports()
        self.bootstrap = f"127.0.0.1:{port}"
        shutil.copytree(cache / "template", folder / "data")
        (folder / "server.properties").write_text(_properties(folder / "data", port, controller))

    def start(self) -> None:
        """Start it, again on the same ports and data, and return when it says that it is ready."""
        if self._process is not None:
            raise LocalError(f"the broker at {self.bootstrap} runs already: stop() or kill() it before start()")
        archive = self._cache / "classes.jsa"
        share = [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto", "-Xlog:disable"] if archive.exists() else []
        self._launch([*share, "-cp", _class_path(self._cache)])

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL); returns when it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order (SIGTERM); returns when it is gone."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen broker go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _launch(self, options: list[str]) -> None:
        environment = {**os.environ, "JAVA_TOOL_OPTIONS": ""}
        # A group of its own, so that Ctrl-C in a test run does not reach it before the fixture does.
        process = subprocess.Popen(
            [self._java, *_JVM, *options, "kafka.Kafka", str(self._folder / "server.properties")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=environment,
        )
        self._process = process
        atexit.register(self.kill)
        settled = threading.Event()
        ready: list[bool] = []

        def print_log() -> None:
            assert process.stdout is not None
            with process.stdout, self.log.open("a") as log:
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    if _READY in line:
                        ready.append(True)
                        settled.set()
            settled.set()

        self._printer = threading.Thread(target=print_log, name="kafka broker log", daemon=True)
        self._printer.start()
        settled.wait(START_SECONDS)
        if not ready:
            self.kill()
            raise LocalError(f"the Kafka broker did not start; the end of its log:\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines that the broker has printed."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-TAIL_LINES:])

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise LocalError(f"the broker at {self.bootstrap} does not run: start() it first")
        os.killpg(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            os.killpg(process.pid, signal.SIGCONT)  # a frozen process acts on SIGTERM only when it goes on
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _kill_group(process)
        assert self._printer is not None
        self._printer.join()
        atexit.unregister(self.kill)
        self._process = self._printer = None


@contextlib.contextmanager
def run_kafka() -> Iterator[KafkaBroker]:
    """Run a fresh broker in a temporary directory until the block ends.

    The first run on a machine fetches Kafka through Maven and prepares a formatted storage and a class archive, about half a
    minute, kept in `$XDG_CACHE_HOME/trionode` (or `~/.cache/trionode`). Raises `NoKafkaError` when java or mvn is missing and `LocalError`
    when the fetch or the start fails. Blocks; its caller is a fixture or a thread.
    """
    java = shutil.which("java")
    if java is None:
        raise NoKafkaError(
            "these tests run a real Kafka and need Java 17 or later: apt-get install default-jre-headless maven"
        )
    cache = _prepared(java)
    with tempfile.TemporaryDirectory(prefix="trionode-kafka-", ignore_cleanup_errors=True) as folder:
        broker = KafkaBroker(Path(folder), java=java, cache=cache)
        try:
            broker.start()
            yield broker
        finally:
            broker.kill()


def _prepared(java: str) -> Path:
    """Return the cache folder, complete; the first caller of all processes completes it, the others wait for him."""
    home = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(home) if home else Path.home() / ".cache") / "trionode" / f"kafka-{KAFKA_VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "jars").is_dir():
            _fetch(cache)
        if not (cache / "template").is_dir():
            _format(cache, java)
        if not (cache / "classes.jsa").exists():
            _archive_classes(cache, java)
    return cache


def _fetch(cache: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise NoKafkaError("these tests fetch a real Kafka through Maven, which is not here: apt-get install maven")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        pom = Path(folder) / "pom.xml"
        pom.write_text(_POM)
        jars = Path(folder) / "jars"
        _run(
            [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={jars}"],
            "Maven could not fetch Kafka",
        )
        jars.rename(cache / "jars")  # whole or not at all


def _format(cache: Path, java: str) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        data = Path(folder) / "data"
        settings = Path(folder) / "server.properties"
        settings.write_text(_properties(data, 1, 2))  # formatting opens no port
        _run(
            [
                java,
                *_JVM,
                "-cp",
                _class_path(cache),
                "kafka.tools.StorageTool",
                "format",
                "-t",
                _CLUSTER,
                "-c",
                str(settings),
            ],
            "Kafka's storage could not be formatted",
        )
        data.rename(cache / "template")


def _archive_classes(cache: Path, java: str) -> None:
    """Run a broker once so that the JVM writes down the classes it loaded: later starts take a third of the time."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        broker = KafkaBroker(Path(folder), java=java, cache=cache)
        archive = Path(folder) / "classes.jsa"
        broker._launch([f"-XX:ArchiveClassesAtExit={archive}", "-cp", _class_path(cache)])  # noqa: SLF001 - the same class
        broker.stop()
        archive.rename(cache / "classes.jsa")


def _run(command: list[str], failure: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=FETCH_SECONDS, check=False
    )
    if done.returncode:
        raise LocalError(f"{failure}:\n{os.linesep.join(done.stdout.splitlines()[-TAIL_LINES:])}")


def _class_path(cache: Path) -> str:
    # Not "jars/*": the class archive is valid for one order of jars only, and the wildcard's order is the file system's.
    return os.pathsep.join(str(jar) for jar in sorted((cache / "jars").glob("*.jar")))


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _properties(data: Path, port: int, controller: int) -> str:
    return f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=4194304
"""


def _kill_group(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
