"""A real Apache Kafka broker for tests: fetched once through Maven, started in a second or two."""

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
from trionode.testing.kafka_setup import (
    JVM,
    KAFKA_VERSION,
    NoKafkaError,
    SecureListeners,
    class_path,
    fetch,
    format_storage,
    last_lines,
    properties,
    secured,
)

__all__ = ["KafkaBroker", "NoKafkaError", "SecureListeners", "run_kafka"]

#: Seconds for one start: measured 1-3 s, and up to 13 s under load.
START_SECONDS = 60.0
#: Seconds that a broker has to flush after SIGTERM (measured 0.3 s) before it is killed.
STOP_SECONDS = 15.0

_READY = "Kafka Server started"


class KafkaBroker:
    """One broker in KRaft combined mode, on free ports of the loopback interface; `run_kafka` makes it.

    Its methods block (a start takes 1-3 s), so call them through `trio.to_thread.run_sync` in a Trio test. `kill` or
    `stop`, and then `start`, keep ports and data.

    Attributes:
      bootstrap: The address for clients, "127.0.0.1:PORT".
      log: The file with all that the broker has printed, over all its starts.
    """

    bootstrap: str
    log: Path

    def __init__(self, folder: Path, *, java: str, cache: Path, secure: bool = False) -> None:
        self._folder = folder
        self._java = java
        self._cache = cache
        self._process: subprocess.Popen[str] | None = None
        self._printer: threading.Thread | None = None
        self.log = folder / "broker.log"
        self._archive = cache / ("classes-secure.jsa" if secure else "classes.jsa")
        port, controller, *others = _free_ports(5 if secure else 2)
        self.bootstrap = f"127.0.0.1:{port}"
        self._listeners: SecureListeners | None = None
        shutil.copytree(cache / ("template-secure" if secure else "template"), folder / "data")
        text = properties(folder / "data", port, controller)
        if secure:
            text, self._listeners = secured(text, folder, [f"127.0.0.1:{other}" for other in others])
        (folder / "server.properties").write_text(text)

    @property
    def secure(self) -> SecureListeners:
        """The listeners with TLS and SASL.

        Raises:
          LocalError: `run_kafka` was not called with `secure=True`.
        """
        if self._listeners is None:
            raise LocalError("this broker has no listeners with TLS and SASL: start it by run_kafka(secure=True)")
        return self._listeners

    def start(self) -> None:
        """Start the broker on its ports and data, and return when it reports that it is ready.

        Raises:
          LocalError: It runs already, or did not start. The text has the end of its log.
        """
        if self._process is not None:
            raise LocalError(f"the broker at {self.bootstrap} runs already: call stop() or kill() before start()")
        archive = self._archive
        share = [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto", "-Xlog:disable"] if archive.exists() else []
        self._launch([*share, "-cp", class_path(self._cache)])

    def kill(self) -> None:
        """Kill the broker (SIGKILL), as a power cut would. Returns when its process has ended."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut the broker down (SIGTERM). Returns when its process has ended."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Suspend the broker (SIGSTOP): connections stay open, and it does not answer.

        Raises:
          LocalError: It does not run.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a suspended broker (SIGCONT).

        Raises:
          LocalError: It does not run.
        """
        self._signal(signal.SIGCONT)

    def _launch(self, options: list[str]) -> None:
        environment = {**os.environ, "JAVA_TOOL_OPTIONS": ""}
        # A process group of its own: Ctrl-C in a test run must not reach the broker before the fixture does.
        process = subprocess.Popen(
            [self._java, *JVM, *options, "kafka.Kafka", str(self._folder / "server.properties")],
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
        decided = threading.Event()
        ready: list[bool] = []

        def print_log() -> None:
            assert process.stdout is not None
            with process.stdout, self.log.open("a") as log:
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    if _READY in line:
                        ready.append(True)
                        decided.set()
            decided.set()

        self._printer = threading.Thread(target=print_log, name="kafka broker log", daemon=True)
        self._printer.start()
        decided.wait(START_SECONDS)
        if not ready:
            self.kill()
            raise LocalError(f"the Kafka broker did not start; the end of its log:\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines that the broker has printed."""
        return last_lines(self.log.read_text(errors="replace") if self.log.exists() else "")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise LocalError(f"the broker at {self.bootstrap} does not run: call start() first")
        os.killpg(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            os.killpg(process.pid, signal.SIGCONT)  # a suspended process handles SIGTERM only when it is resumed
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _kill_group(process)
        assert self._printer is not None
        self._printer.join()
        atexit.unregister(self.kill)
        self._process = self._printer = None


@contextlib.contextmanager
def run_kafka(*, secure: bool = False) -> Iterator[KafkaBroker]:
    """Run a new broker in a temporary directory for the length of a block. It blocks: use it in a fixture or a thread.

    The first run on a machine fetches Kafka through Maven and prepares a formatted storage and a class archive, in
    about half a minute. It keeps them in `$XDG_CACHE_HOME/trionode` (or `~/.cache/trionode`).

    Args:
      secure: Add listeners with TLS and SASL to the plain one, and ACLs; see `KafkaBroker.secure`.

    Returns:
      The context manager, which returns the running broker.

    Raises:
      NoKafkaError: Java or Maven is not installed.
      LocalError: Fetching Kafka or starting the broker failed.
    """
    java = shutil.which("java")
    if java is None:
        raise NoKafkaError(
            "these tests run a real Kafka and need Java 17 or later: apt-get install default-jre-headless maven"
        )
    cache = _prepared(java, secure=secure)
    with tempfile.TemporaryDirectory(prefix="trionode-kafka-", ignore_cleanup_errors=True) as folder:
        broker = KafkaBroker(Path(folder), java=java, cache=cache, secure=secure)
        try:
            broker.start()
            yield broker
        finally:
            broker.kill()


def _prepared(java: str, *, secure: bool) -> Path:
    """Return the complete cache folder. The first of all processes completes it, the others wait."""
    home = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(home) if home else Path.home() / ".cache") / "trionode" / f"kafka-{KAFKA_VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "jars").is_dir():
            fetch(cache)
        suffix = "-secure" if secure else ""
        if not (cache / f"template{suffix}").is_dir():
            format_storage(cache, java, f"template{suffix}", secure=secure)
        if not (cache / f"classes{suffix}.jsa").exists():
            _archive_classes(cache, java, f"classes{suffix}.jsa", secure=secure)
    return cache


def _archive_classes(cache: Path, java: str, name: str, *, secure: bool) -> None:
    """Run a broker once, to archive the classes that the JVM loads: later starts take a third of the time."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        broker = KafkaBroker(Path(folder), java=java, cache=cache, secure=secure)
        archive = Path(folder) / name
        broker._launch([f"-XX:ArchiveClassesAtExit={archive}", "-cp", class_path(cache)])
        broker.stop()
        archive.rename(cache / name)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _kill_group(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
