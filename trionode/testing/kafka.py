"""A real Apache Kafka broker for tests: fetched once through Maven, then started in a second or two in a temporary directory, on demand with TLS and SASL."""

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
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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
_CLIENT: Final = "client"  # the common name that its certificate shows
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


@attrs.frozen
class SecureListeners:
    """What clients need for the other listeners of a broker that `run_kafka(secure=True)` started: places, names, and paths of PEM files."""

    #: Demands a certificate of its clients.
    ssl: str
    #: Demand a user's password, by SCRAM-SHA-256, SCRAM-SHA-512 or PLAIN.
    sasl_ssl: str
    sasl_plaintext: str
    #: Who signed the certificate of the broker, which is for 127.0.0.1 and localhost, and the client's.
    authority: str
    #: A client's certificate and its key in one file; whoever shows it may do everything.
    certificate: str
    #: May do everything, as may whoever comes to `KafkaBroker.bootstrap`.
    username: str = "alice"
    #: Proves itself with the same password, and may do nothing.
    stranger: str = "mallory"
    password: str = attrs.field(default="open sesame", repr=False)


class KafkaBroker:
    """One broker of its own, in KRaft combined mode on free loopback ports; made by `run_kafka`.

    Its methods block (a start takes 1-3 s), so a Trio test calls them through `trio.to_thread.run_sync`. Ports and data stay
    the same over `kill` or `stop` and `start`. Methods raise `LocalError` with the end of the broker's log when it does not come up.
    """

    bootstrap: str  #: "127.0.0.1:PORT", what a client is given
    log: Path  #: everything that the broker has printed, over all its starts

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
        properties = _properties(folder / "data", port, controller)
        if secure:
            ssl, sasl_ssl, sasl_plaintext = (f"127.0.0.1:{other}" for other in others)
            authority, server, client = _certificates(folder)
            self._listeners = SecureListeners(ssl, sasl_ssl, sasl_plaintext, authority, client)
            properties = _secured(properties, self._listeners, server)
        (folder / "server.properties").write_text(properties)

    @property
    def secure(self) -> SecureListeners:
        """The listeners with TLS and SASL; LocalError if it has none."""
        if self._listeners is None:
            raise LocalError("this broker has no listeners with TLS and SASL: start it by run_kafka(secure=True)")
        return self._listeners

    def start(self) -> None:
        """Start it, again on the same ports and data, and return when it says that it is ready."""
        if self._process is not None:
            raise LocalError(f"the broker at {self.bootstrap} runs already: stop() or kill() it before start()")
        archive = self._archive
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
def run_kafka(*, secure: bool = False) -> Iterator[KafkaBroker]:
    """Run a fresh broker in a temporary directory until the block ends; a secure one has listeners with TLS and SASL beside its plain one, and ACLs.

    The first run on a machine fetches Kafka through Maven and prepares a formatted storage and a class archive, about half a
    minute, kept in `$XDG_CACHE_HOME/trionode` (or `~/.cache/trionode`). Raises `NoKafkaError` when java or mvn is missing and `LocalError`
    when the fetch or the start fails. Blocks; its caller is a fixture or a thread.
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
    """Return the cache folder, complete; the first caller of all processes completes it, the others wait for him."""
    home = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(home) if home else Path.home() / ".cache") / "trionode" / f"kafka-{KAFKA_VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "jars").is_dir():
            _fetch(cache)
        suffix = "-secure" if secure else ""
        if not (cache / f"template{suffix}").is_dir():
            _format(cache, java, f"template{suffix}", _scram_users() if secure else [])
        if not (cache / f"classes{suffix}.jsa").exists():
            _archive_classes(cache, java, f"classes{suffix}.jsa", secure=secure)
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


def _format(cache: Path, java: str, template: str, options: list[str]) -> None:
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
                *options,
            ],
            "Kafka's storage could not be formatted",
        )
        data.rename(cache / template)


def _archive_classes(cache: Path, java: str, name: str, *, secure: bool) -> None:
    """Run a broker once so that the JVM writes down the classes it loaded: later starts take a third of the time."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        broker = KafkaBroker(Path(folder), java=java, cache=cache, secure=secure)
        archive = Path(folder) / name
        broker._launch([f"-XX:ArchiveClassesAtExit={archive}", "-cp", _class_path(cache)])
        broker.stop()
        archive.rename(cache / name)


def _run(command: list[str], failure: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=FETCH_SECONDS, check=False
    )
    if done.returncode:
        raise LocalError(f"{failure}:\n{os.linesep.join(done.stdout.splitlines()[-TAIL_LINES:])}")


def _class_path(cache: Path) -> str:
    # Not "jars/*": the class archive is valid for one order of jars only, and the wildcard's order is the file system's.
    return os.pathsep.join(str(jar) for jar in sorted((cache / "jars").glob("*.jar")))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _properties(data: Path, port: int, controller: int) -> str:
    return f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
controller.quorum.append.linger.ms=0
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


def _secured(properties: str, to: SecureListeners, server: str) -> str:
    """Add listeners with TLS and SASL, and an authoriser that lets in whom it knows."""
    endpoints = {"SSL": to.ssl, "SASL_SSL": to.sasl_ssl, "SASL_PLAINTEXT": to.sasl_plaintext}
    added = "".join(f",{name}://{endpoint}" for name, endpoint in endpoints.items())
    lines = [
        line + added if line.startswith(("listeners=", "advertised.listeners=")) else line
        for line in properties.splitlines()
    ]
    lines += [
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT"
        + "".join(f",{name}:{name}" for name in endpoints),
        f"ssl.keystore.location={server}",
        "ssl.keystore.type=PEM",
        f"ssl.truststore.location={to.authority}",
        "ssl.truststore.type=PEM",
        "listener.name.ssl.ssl.client.auth=required",
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # The controller, and whoever comes by the plain listener, are ANONYMOUS.
        f"super.users=User:ANONYMOUS;User:{to.username};User:CN={_CLIENT}",
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "connection.failed.authentication.delay.ms=0",
    ]
    users = " ".join(f'user_{name}="{to.password}"' for name in (to.username, to.stranger))
    for listener in ("sasl_ssl", "sasl_plaintext"):
        jaas = f"listener.name.{listener}.{{}}.sasl.jaas.config=org.apache.kafka.common.security.{{}} required {{}};"
        lines += [
            jaas.format("plain", "plain.PlainLoginModule", users),
            jaas.format("scram-sha-256", "scram.ScramLoginModule", ""),
            jaas.format("scram-sha-512", "scram.ScramLoginModule", ""),
        ]
    return "\n".join([*lines, ""])


def _scram_users() -> list[str]:
    known = SecureListeners("", "", "", "", "")
    return [
        word
        for name in (known.username, known.stranger)
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for word in ("--add-scram", f'{mechanism}=[name="{name}",password="{known.password}"]')
    ]


def _certificates(folder: Path) -> tuple[str, str, str]:
    """Make an authority, and what it signs for the broker and for a client, key and certificate in one file each; their paths."""
    signer = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a broker for tests")])
    now = datetime.now(UTC)

    def certificate(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=7))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(signer, hashes.SHA256())
        )

    def written(name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None = None) -> str:
        text = certificate.public_bytes(serialization.Encoding.PEM)
        if key is not None:
            text += key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        path = folder / name
        path.write_bytes(text)
        return str(path)

    def signed(common_name: str, *names: x509.GeneralName) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        return written(f"{common_name}.pem", certificate(subject, key, x509.SubjectAlternativeName([*names])), key)

    authority = written("authority.pem", certificate(issuer, signer, x509.BasicConstraints(ca=True, path_length=0)))
    server = signed("broker", x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))
    return authority, server, signed(_CLIENT, x509.DNSName(_CLIENT))


def _kill_group(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
