"""The parts of a test broker: Kafka's jars, a formatted storage, its properties, and certificates."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
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

#: The Kafka that tests run. A change makes a new cache folder by itself.
KAFKA_VERSION = "4.4.0"
#: The slf4j that this Kafka needs. A binding of another major version logs nothing, and readiness is a log line.
SLF4J_VERSION = "1.7.36"
#: Seconds for Maven on a cold cache (43 MB; measured 5-25 s).
FETCH_SECONDS = 300.0
#: Lines of a log that an error shows.
TAIL_LINES = 25
#: Options of every JVM.
JVM = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

_CLUSTER = "trionode-testing-AAAAA"  # StorageTool wants a cluster id of any 22 base64 characters
_CLIENT: Final = "client"  # the common name in the client's certificate
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
    """This machine lacks a program that a broker needs. The text says how to install it."""


@attrs.frozen
class SecureListeners:
    """What clients need for the listeners with TLS and SASL of a broker that `run_kafka(secure=True)` started.

    Attributes:
      ssl: Address of the listener that demands a client certificate.
      sasl_ssl: Address of the listener with TLS that demands a password, by SCRAM-SHA-256, SCRAM-SHA-512 or PLAIN.
      sasl_plaintext: The same without TLS.
      ca_file: PEM file with the CA that signed the broker's certificate, for 127.0.0.1 and localhost, and the client's.
      certificate: PEM file with a client's certificate and its key. This client has all rights.
      username: A user with all rights. Clients of `KafkaBroker.bootstrap` have all rights too.
      user_without_rights: A user with the same password and no rights.
      password: The password of both users.
    """

    ssl: str
    sasl_ssl: str
    sasl_plaintext: str
    ca_file: str
    certificate: str
    username: str = "alice"
    user_without_rights: str = "mallory"
    password: str = attrs.field(default="open sesame", repr=False)


def fetch(cache: Path) -> None:
    """Fetch Kafka's jars into `cache/jars`, whole or not at all."""
    maven = shutil.which("mvn")
    if maven is None:
        raise NoKafkaError("these tests fetch a real Kafka through Maven, which is missing: apt-get install maven")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        pom, jars = Path(folder) / "pom.xml", Path(folder) / "jars"
        pom.write_text(_POM)
        copy = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
        _run(copy, "Maven could not fetch Kafka")
        jars.rename(cache / "jars")


def format_storage(cache: Path, java: str, template: str, *, secure: bool) -> None:
    """Format a storage in `cache/template`, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        data, settings = Path(folder) / "data", Path(folder) / "server.properties"
        settings.write_text(properties(data, 1, 2))  # formatting opens no port
        tool = [java, *JVM, "-cp", class_path(cache), "kafka.tools.StorageTool"]
        options = ["-t", _CLUSTER, "-c", str(settings), *(_scram_users() if secure else [])]
        _run([*tool, "format", *options], "Kafka's storage could not be formatted")
        data.rename(cache / template)


def class_path(cache: Path) -> str:
    """Return the class path of the jars in their order: a class archive is valid for one order only."""
    return os.pathsep.join(str(jar) for jar in sorted((cache / "jars").glob("*.jar")))


def properties(data: Path, port: int, controller: int) -> str:
    """Return the text of server.properties."""
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
log.retention.check.interval.ms=500
log.initial.task.delay.ms=500
log.cleaner.dedupe.buffer.size=4194304
"""


def secured(text: str, folder: Path, addresses: Sequence[str]) -> tuple[str, SecureListeners]:
    """Add listeners with TLS and SASL, and ACLs, to the text of server.properties."""
    ca_file, server, client = _certificates(folder)
    ssl, sasl_ssl, sasl_plaintext = addresses
    to = SecureListeners(ssl, sasl_ssl, sasl_plaintext, ca_file, client)
    listeners = {"SSL": to.ssl, "SASL_SSL": to.sasl_ssl, "SASL_PLAINTEXT": to.sasl_plaintext}
    added = "".join(f",{name}://{address}" for name, address in listeners.items())
    lines = [
        line + added if line.startswith(("listeners=", "advertised.listeners=")) else line for line in text.splitlines()
    ]
    lines += [
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT"
        + "".join(f",{name}:{name}" for name in listeners),
        f"ssl.keystore.location={server}",
        "ssl.keystore.type=PEM",
        f"ssl.truststore.location={ca_file}",
        "ssl.truststore.type=PEM",
        "listener.name.ssl.ssl.client.auth=required",
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # The controller, and clients of the plain listener, are ANONYMOUS.
        f"super.users=User:ANONYMOUS;User:{to.username};User:CN={_CLIENT}",
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "connection.failed.authentication.delay.ms=0",
    ]
    users = " ".join(f'user_{name}="{to.password}"' for name in (to.username, to.user_without_rights))
    for listener in ("sasl_ssl", "sasl_plaintext"):
        jaas = f"listener.name.{listener}.{{}}.sasl.jaas.config=org.apache.kafka.common.security.{{}} required {{}};"
        lines += [
            jaas.format("plain", "plain.PlainLoginModule", users),
            jaas.format("scram-sha-256", "scram.ScramLoginModule", ""),
            jaas.format("scram-sha-512", "scram.ScramLoginModule", ""),
        ]
    return "\n".join([*lines, ""]), to


def last_lines(text: str) -> str:
    """Return the end of a log."""
    return "\n".join(text.splitlines()[-TAIL_LINES:])


def _run(command: Sequence[str], failure: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=FETCH_SECONDS, check=False
    )
    if done.returncode:
        raise LocalError(f"{failure}:\n{last_lines(done.stdout)}")


def _scram_users() -> list[str]:
    known = SecureListeners("", "", "", "", "")
    return [
        word
        for name in (known.username, known.user_without_rights)
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for word in ("--add-scram", f'{mechanism}=[name="{name}",password="{known.password}"]')
    ]


def _certificates(folder: Path) -> tuple[str, str, str]:
    """Make a CA, and one file each with certificate and key of the broker and of a client. Returns their paths."""
    ca_key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of a broker for tests")])

    def signed(subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(ca_name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=7))
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def written(name: str, pem: bytes) -> str:
        path = folder / f"{name}.pem"
        path.write_bytes(pem)
        return str(path)

    def with_key(name: str, *hosts: x509.GeneralName) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return written(name, signed(subject, key, x509.SubjectAlternativeName(hosts)) + secret)

    ca_file = written("ca", signed(ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=0)))
    server = with_key("broker", x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))
    return ca_file, server, with_key(_CLIENT, x509.DNSName(_CLIENT))
