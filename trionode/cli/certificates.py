"""The options for places with TLS that commands share, and the transports that are made with them."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

import attrs
import click

from trionode.errors import LocalError
from trionode.net.transport import Transport, load_transport, transport_class

C = TypeVar("C", bound=Callable[..., Any])


@attrs.frozen
class Certificates:
    """Paths of PEM files, by the names that transports with TLS have for them."""

    certificate: str | None = None
    key: str | None = None
    ca_file: str | None = None
    client_ca_file: str | None = None

    def load(self, names: Iterable[str], **options: object) -> list[Transport]:
        """Return the transports of some names; those with TLS use the files. LocalError if there are files and none to use them."""
        names = set(names)
        given = attrs.asdict(self, filter=lambda _, value: value is not None)
        with_tls = {name for name in names if transport_class(name).takes_certificates}
        if given and not with_tls:
            flags = " ".join(f"--{name.replace('_', '-')}" for name in given)
            raise LocalError(f"{flags}: that is for places with TLS, tls:HOST:PORT or wss:HOST:PORT, and none is given")
        return [load_transport(name, **options, **(given if name in with_tls else {})) for name in names]


def certificate_options(*, dials: bool, listens: bool) -> Callable[[C], C]:
    """Add which files are for places with TLS: the command gets `certificates`."""
    options = [
        _file("--certificate", "The certificate to show at places with TLS (tls:, wss:), in PEM."),
        _file("--key", "Its key, if that is in another file."),
    ]
    if dials:
        options.append(
            _file("--ca-file", "Trust whom this authority signed, and not the system's, at places with TLS.")
        )
    if listens:
        options.append(_file("--client-ca-file", "At places with TLS, let in only whom this authority signed."))

    def add(command: C) -> C:
        @wraps(command)
        def with_certificates(
            *,
            certificate: str | None,
            key: str | None,
            ca_file: str | None = None,
            client_ca_file: str | None = None,
            **options: Any,
        ) -> object:
            return command(certificates=Certificates(certificate, key, ca_file, client_ca_file), **options)

        decorated: Any = with_certificates
        for option in reversed(options):
            decorated = option(decorated)
        result: C = decorated
        return result

    return add


def _file(name: str, text: str) -> Callable[[C], C]:
    return click.option(name, type=click.Path(), metavar="FILE", help=text)
