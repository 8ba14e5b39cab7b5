"""How a Kafka's listener is spoken to: in the clear or under TLS, with a password or without, out of options that store and transport share."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import attrs

from trionode.plugins import Exposure, LocalError, client_context

#: What a listener may demand, by Kafka's names for it in small letters.
PROTOCOLS = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
#: How a password may be proven; SCRAM does not show it to who can listen, PLAIN does where there is no TLS.
MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")


@attrs.frozen
class Security:
    """Options that fit together; the files that they name are read by `tls_context` and `secret`, whenever a Kafka is connected anew."""

    protocol: str = "plaintext"
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    password_file: str | None = None
    mechanism: str = MECHANISMS[0]

    @classmethod
    def of(
        cls,
        security: str,
        *,
        ca_file: str | None,
        certificate: str | None,
        key: str | None,
        username: str | None,
        password: str | None,
        password_file: str | None,
        mechanism: str,
    ) -> Self:
        """Return what a user's options mean; LocalError says which of them don't fit together, and what to do."""
        if security not in PROTOCOLS:
            raise LocalError(f"security is {', '.join(PROTOCOLS[:-1])} or {PROTOCOLS[-1]}, not {security!r:.100}")
        if mechanism not in MECHANISMS:
            raise LocalError(f"mechanism is {', '.join(MECHANISMS[:-1])} or {MECHANISMS[-1]}, not {mechanism!r:.100}")
        made = cls(security, ca_file, certificate, key, username, password, password_file, mechanism)
        if not made.has_tls:
            for name, value in (("ca_file", ca_file), ("certificate", certificate), ("key", key)):
                if value is not None:
                    raise LocalError(
                        f"{name} is for TLS, and security={security!r} has none: say security='ssl', or 'sasl_ssl' for a password too"
                    )
        if key is not None and certificate is None:
            raise LocalError(f"the key {key} has no certificate: give the option certificate too")
        if not made.has_password:
            for name, value in (("username", username), ("password", password), ("password_file", password_file)):
                if value is not None:
                    raise LocalError(
                        f"{name} is for SASL, and security={security!r} has none: say security='sasl_ssl', or 'sasl_plaintext' without TLS"
                    )
        elif not username:
            raise LocalError(f"security={security!r} proves who you are: give username, and password or password_file")
        elif (password is None) == (password_file is None):
            raise LocalError(f"security={security!r} takes a password: give one of password and password_file")
        elif password is not None and not password:
            raise LocalError("the password is empty")
        return made

    @property
    def has_tls(self) -> bool:
        """Whether the connection is under TLS."""
        return self.protocol.endswith("ssl")

    @property
    def has_password(self) -> bool:
        """Whether a password is proven."""
        return self.protocol.startswith("sasl")

    def tls_context(self) -> ssl.SSLContext | None:
        """Return whom to trust and what to show; None without TLS. LocalError says what is wrong with which file."""
        if not self.has_tls:
            return None
        return client_context(ca_file=self.ca_file, certificate=self.certificate, key=self.key)

    def secret(self) -> str | None:
        """Return the password; None where none is proven. LocalError if its file can't be read or holds none."""
        if self.password_file is None:
            return self.password
        try:
            text = Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise LocalError(f"can't read password_file {self.password_file}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise LocalError(f"password_file {self.password_file} is no text in UTF-8") from None
        if not text:
            raise LocalError(f"password_file {self.password_file} is empty: the password is its first line")
        return text.splitlines()[0]


def exposure_of(options: Mapping[str, object]) -> Exposure:
    """Return who observes what passes between a client with these options and the brokers."""
    encrypts = str(options.get("security", PROTOCOLS[0])).endswith("ssl")
    return Exposure.BROKERS if encrypts else Exposure.BROKERS | Exposure.NETWORK


#: In the clear, without a password.
PLAINTEXT = Security()
