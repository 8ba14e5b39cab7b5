"""How a Kafka client authenticates and whether it uses TLS: the options that the store and the transport share."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import attrs

from trionode.plugins import ConfigError, Exposure, client_context

#: The security protocols of a listener, by Kafka's names in lower case.
PROTOCOLS = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
#: SASL mechanisms. PLAIN sends the password in the clear unless TLS is used; SCRAM never sends it.
MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")

_NO_TLS = "is for TLS, and security={!r} has none: set security='ssl', or 'sasl_ssl' for a password too"
_NO_SASL = "is for SASL, and security={!r} has none: set security='sasl_ssl', or 'sasl_plaintext' without TLS"


@attrs.frozen
class Security:
    """Options that fit together. `tls_context` and `secret` read their files each time a client connects."""

    protocol: str = "plaintext"
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    password_file: str | None = None
    mechanism: str = MECHANISMS[0]

    @classmethod
    def of(cls, security: str, *options: Any) -> Self:
        """Check options, in the order of the fields; ConfigError says which don't fit together, and what to do."""
        made = cls(security, *options)
        _one_of("security", security, PROTOCOLS)
        _one_of("mechanism", made.mechanism, MECHANISMS)
        for applies, names, problem in (
            (made.has_tls, ("ca_file", "certificate", "key"), _NO_TLS),
            (made.has_password, ("username", "password", "password_file"), _NO_SASL),
        ):
            for name in names:
                if not applies and getattr(made, name) is not None:
                    raise ConfigError(f"{name} {problem.format(security)}")
        if made.key is not None and made.certificate is None:
            raise ConfigError(f"the key {made.key} has no certificate: set the option certificate too")
        if made.has_password:
            if not made.username:
                raise ConfigError(f"security={security!r} needs a user: set username, and password or password_file")
            if (made.password is None) == (made.password_file is None):
                raise ConfigError(f"security={security!r} needs a password: set either password or password_file")
            if made.password is not None and not made.password:
                raise ConfigError("the password is empty")
        return made

    @property
    def has_tls(self) -> bool:
        """Whether the connection uses TLS."""
        return self.protocol.endswith("ssl")

    @property
    def has_password(self) -> bool:
        """Whether the client authenticates with a password."""
        return self.protocol.startswith("sasl")

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the TLS context, None without TLS; ConfigError says what is wrong with which file."""
        if not self.has_tls:
            return None
        return client_context(ca_file=self.ca_file, certificate=self.certificate, key=self.key)

    def secret(self) -> str | None:
        """Return the password, None without SASL; ConfigError if its file can't be read or is empty."""
        if self.password_file is None:
            return self.password
        try:
            text = Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ConfigError(f"can't read password_file {self.password_file}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise ConfigError(f"password_file {self.password_file} is not UTF-8 text") from None
        if not text:
            raise ConfigError(f"password_file {self.password_file} is empty: its first line must be the password")
        return text.splitlines()[0]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {', '.join(allowed[:-1])} or {allowed[-1]}, not {value!r:.100}")


def exposure_of(options: Mapping[str, object]) -> Exposure:
    """Return who observes the bytes between a client with these options and the brokers."""
    encrypts = str(options.get("security", PROTOCOLS[0])).endswith("ssl")
    return Exposure.BROKERS if encrypts else Exposure.BROKERS | Exposure.NETWORK


#: No TLS and no password.
PLAINTEXT = Security()
