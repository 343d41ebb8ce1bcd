"""The client's side of mutual TLS. gRPC reads nothing anew by itself here: a new channel has the files as they are."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files: the certificate that says who calls, its key, and the CA that the host's certificate is from."""

    cert: Path
    key: Path
    ca: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises ValueError naming the one that cannot be right."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            cert, key, ca = (path.read_bytes() for path in (self.cert, self.key, self.ca))
            context.load_cert_chain(self.cert, self.key)
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ValueError(
                f"{self.cert}, {self.key}, {self.ca}: expected a certificate, its key and a CA: {error}"
            ) from error
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}") from error
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def client_tls(cert: Path | None, key: Path | None, ca: Path | None) -> ClientTls | None:
    """All three, or none. Raises ValueError naming what is missing."""
    given = {"tls-cert": cert, "tls-key": key, "tls-ca": ca}
    if cert is not None and key is not None and ca is not None:
        return ClientTls(cert, key, ca)
    missing = [name for name, path in given.items() if path is None]
    if len(missing) < len(given):
        raise ValueError(f"{', '.join(missing)}: expected beside the others, or none of them")
    return None
