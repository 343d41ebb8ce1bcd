"""Where a host listens: a unix socket, TCP with mutual TLS, or plaintext TCP on loopback for those who ask for it.

Who may talk to a host on a unix socket is a matter of file modes: gRPC does not hand over the peer's identity. So the
socket is its owner's alone unless its mode and group say otherwise, and lies in a folder that nobody else can put
things into.
"""

from __future__ import annotations

import grp
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: sun_path with its final zero. Source: unix(7).
_SUN_PATH_MAX: Final = 107
_TCP: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})")
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


class AddressError(Exception):
    """An address that a host cannot, or must not, listen on."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system, its mode, and the group it belongs to (empty: the process's own)."""

    path: Path
    mode: int = 0o600
    group: str = ""

    @property
    def target(self) -> str:
        """What gRPC binds and a client dials."""
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port, 0 lets the system choose; ``secure`` with mutual TLS, otherwise on loopback alone."""

    host: str
    port: int
    secure: bool = False

    @property
    def target(self) -> str:
        """What gRPC binds and a client dials."""
        return f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(
    address: str,
    *,
    allow_insecure_tcp: bool = False,
    tls: bool = False,
    socket_mode: int = 0o600,
    socket_group: str = "",
) -> Address:
    """Read `unix:PATH` or `HOST:PORT`. Raises ``AddressError``.

    TCP needs ``tls``, mutual TLS; without it, a loopback host and ``allow_insecure_tcp``.
    """
    if address.startswith("unix:"):
        _check_mode(socket_mode)
        return UnixAddress(_socket_path(address), socket_mode, socket_group)
    match = _TCP.fullmatch(address)
    if match is None or int(match["port"]) > 65_535:
        raise AddressError(f"address: expected unix:PATH, or HOST:PORT with a port up to 65535, got {address!r}")
    if not tls:
        _check_plaintext(address, match["host"], allowed=allow_insecure_tcp)
    return TcpAddress(match["host"], int(match["port"]), secure=tls)


def _check_mode(mode: int) -> None:
    if mode & 0o600 != 0o600 or mode & ~0o770:
        raise AddressError(f"socket mode: expected 0600 or 0660, nothing for everybody, got {mode:04o}")


def _check_plaintext(address: str, host: str, *, allowed: bool) -> None:
    if host not in _LOOPBACK:
        raise AddressError(
            f"address: {address} is beyond loopback, where there is mutual TLS or nothing: give it a certificate, "
            "its key and a CA (--tls-cert, --tls-key, --tls-ca), or listen on unix:PATH"
        )
    if not allowed:
        raise AddressError(
            f"address: {address} would be plaintext TCP, which every user of this machine can reach; "
            "use unix:PATH, or mutual TLS, or say allow_insecure_tcp"
        )


def _socket_path(address: str) -> Path:
    """Read what gRPC reads: `unix:relative`, `unix:/absolute` and `unix:///absolute`."""
    path = address.removeprefix("unix:")
    path = "/" + path.lstrip("/") if path.startswith("//") else path
    if not path or len(os.fsencode(path)) > _SUN_PATH_MAX:
        raise AddressError(f"address: expected unix:PATH with 1 to {_SUN_PATH_MAX} bytes of path, got {address!r}")
    return Path(path)


def prepare_socket(address: UnixAddress) -> None:
    """Make the folder, and room for the socket: one left behind is removed, one in use is refused.

    A folder that is made here is its owner's alone, and can be passed through by the socket's group if that has a name.
    Raises ``AddressError`` and touches nothing that is not a dead socket.
    """
    folder = address.path.parent
    group = _group_id(address.group)
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            if group is not None:
                os.chown(folder, -1, group)
                folder.chmod(0o710)
        found = folder.stat()
    except OSError as error:
        raise AddressError(f"the folder of {address.path}: {error.strerror}") from error
    if found.st_uid not in (0, os.getuid()):
        raise AddressError(f"{folder} belongs to user {found.st_uid}, who could take the socket's place")
    mode = found.st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise AddressError(f"{folder} can be written by everybody: whoever likes could take the socket's place")
    _remove_dead_socket(address.path)


@contextmanager
def only_its_own_mode(address: UnixAddress) -> Iterator[None]:
    """While the socket is made, nothing more than its mode; then its group, and the mode itself.

    Between bind() and chmod() the socket would else be open to whoever the umask lets in.
    """
    before = os.umask(0o777 & ~address.mode)
    try:
        yield
    finally:
        os.umask(before)
    try:
        group = _group_id(address.group)
        if group is not None:
            os.chown(address.path, -1, group)
        address.path.chmod(address.mode)
    except OSError as error:
        raise AddressError(f"{address.path}: {error.strerror}") from error


def _group_id(name: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise AddressError(f"socket group: there is no group {name!r}") from error


def _remove_dead_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"{path} is there already, and is no socket")
    if _is_listening(path):
        raise AddressError(f"{path} is in use by a running host agent")
    path.unlink(missing_ok=True)


def _is_listening(path: Path) -> bool:
    """Whether somebody accepts connections there. A full backlog (EAGAIN) is somebody too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            raise AddressError(f"{path}: {error.strerror}") from error
        return True
