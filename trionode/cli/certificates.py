"""The options for TLS that commands share, and the transports that are made with them."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import attrs
import click

from trionode.cli.combine import combine
from trionode.errors import ConfigError
from trionode.net.transport import Transport, load_transport, transport_class

C = TypeVar("C", bound=Callable[..., Any])


@attrs.frozen
class Certificates:
    """Paths of PEM files, by the names of the options of transports with TLS."""

    certificate: str | None = None
    key: str | None = None
    ca_file: str | None = None
    client_ca_file: str | None = None

    def load(self, names: Iterable[str], **options: object) -> list[Transport]:
        """Return the transports of some names, with the files for those with TLS.

        ConfigError if files are given and no transport uses them.
        """
        names = set(names)
        given = attrs.asdict(self, filter=lambda _, value: value is not None)
        with_tls = {name for name in names if transport_class(name).takes_certificates}
        if given and not with_tls:
            flags = " ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(f"{flags}: these options need an address with TLS, tls:HOST:PORT or wss:HOST:PORT")
        return [load_transport(name, **options, **(given if name in with_tls else {})) for name in names]


def certificate_options(*, dials: bool, listens: bool) -> Callable[[C], C]:
    """Add the options for TLS: the command gets `certificates`.

    Args:
      dials: Whether the command connects, and so can choose the CAs that it trusts.
      listens: Whether the command listens, and so can require certificates.
    """
    options = [
        _file("--certificate", "The certificate of this program for tls: and wss: addresses, in PEM."),
        _file("--key", "The private key of the certificate, if it is in another file."),
    ]
    if dials:
        options.append(_file("--ca-file", "The CA to trust for tls: and wss: addresses. By default the system's CAs."))
    if listens:
        options.append(_file("--client-ca-file", "Require a client certificate signed by this CA at tls: and wss:."))
    return combine("certificates", Certificates, *options)


def _file(name: str, text: str) -> Callable[[C], C]:
    return click.option(name, type=click.Path(), metavar="FILE", help=text)
