"""Mutual TLS from three PEM files, read anew when they change: new connections see the new ones, old ones go on.

gRPC asks before each handshake. What is not a fitting pair of certificate and key is not taken: a file that is half
written, or a certificate whose key comes a moment later, leaves what was there in force.

Source: grpc.dynamic_ssl_server_credentials.
"""

from __future__ import annotations

import logging
import ssl
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

_log = logging.getLogger(__name__)

#: When a file was what it was: its inode, size and time of change, in nanoseconds.
_Stamp = tuple[tuple[int, int, int], ...]
_OTHERS: Final = stat.S_IRWXO


class CredentialsError(Exception):
    """Files that no TLS can be made of. The text names the file."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the host's certificate (with the chain above it), its key, and the CA that signs its clients'."""

    cert: Path
    key: Path
    ca: Path

    def stamp(self) -> _Stamp:
        """What changes when one of them is replaced."""
        found = (path.stat() for path in (self.cert, self.key, self.ca))
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)


class LiveCredentials:
    """The server's side of mTLS. ``server`` is for ``add_secure_port``; ``loads`` counts what was read and taken."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files. Raises ``CredentialsError``."""
        self._files = files
        self._lock = threading.Lock()  # gRPC asks on threads of its own
        self.loads = 0
        self._stamp: _Stamp | None = None
        self._refused: _Stamp | None = None
        first = self._load(self._stamp_now())
        self.server: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            first,
            self._fetch,  # type: ignore[arg-type]  # None is an answer too: gRPC goes on with what it has
            require_client_authentication=True,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC is to use from now on; None for what it has."""
        with self._lock:
            try:
                stamp = self._stamp_now()
                if stamp in (self._stamp, self._refused):
                    return None
                loaded = self._load(stamp)
            except CredentialsError as error:
                _log.warning("certificates changed, and are not taken: %s", error)
                return None
            _log.info("certificates read anew from %s", self._files.cert)
            return loaded

    def _stamp_now(self) -> _Stamp:
        try:
            return self._files.stamp()
        except OSError as error:
            raise CredentialsError(f"{error.filename}: {error.strerror}") from error

    def _load(self, stamp: _Stamp) -> grpc.ServerCertificateConfiguration:
        self._refused = stamp
        cert, key, ca = (_read(path) for path in (self._files.cert, self._files.key, self._files.ca))
        _check_private(self._files.key)
        _check_fit(self._files)
        self._refused, self._stamp = None, stamp
        self.loads += 1
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{path}: {error.strerror}") from error


def _check_private(key: Path) -> None:
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & _OTHERS:
        raise CredentialsError(f"{key}: everybody may open this key (mode {mode:04o}); expected 0600")


def _check_fit(files: TlsFiles) -> None:
    """Whether TLS can be made of them: OpenSSL says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key)
    except (ssl.SSLError, OSError) as error:
        raise CredentialsError(f"{files.cert} and {files.key} are no certificate and its key: {error}") from error
    try:
        context.load_verify_locations(files.ca)
    except (ssl.SSLError, OSError) as error:
        raise CredentialsError(f"{files.ca} holds no CA certificate: {error}") from error
