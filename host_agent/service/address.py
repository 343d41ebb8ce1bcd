"""Where a host listens: a unix socket, or plaintext TCP on loopback for those who ask for it by name.

Who may talk to a host on a unix socket is a matter of file modes: gRPC does not hand over the peer's identity. So the
socket is its owner's alone, and lies in a folder that nobody else can put things into.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: sun_path with its final zero. Source: unix(7).
_SUN_PATH_MAX: Final = 107
_TCP: Final = re.compile(r"(?P<host>127\.0\.0\.1|localhost|\[::1\]):(?P<port>[0-9]{1,5})")


class AddressError(Exception):
    """An address that a host cannot, or must not, listen on."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: Path

    @property
    def target(self) -> str:
        """What gRPC binds and a client dials."""
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port on loopback; 0 lets the system choose."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """What gRPC binds and a client dials."""
        return f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(address: str, *, allow_insecure_tcp: bool) -> Address:
    """Read `unix:PATH`, or `HOST:PORT` with a loopback host if that is allowed. Raises ``AddressError``."""
    if address.startswith("unix:"):
        return UnixAddress(_socket_path(address))
    match = _TCP.fullmatch(address)
    if match is None or int(match["port"]) > 65_535:
        raise AddressError(
            f"address: expected unix:PATH, or 127.0.0.1:PORT, localhost:PORT or [::1]:PORT, got {address!r}"
        )
    if not allow_insecure_tcp:
        raise AddressError(
            f"address: {address} would be plaintext TCP, which every user of this machine can reach; "
            "use unix:PATH, or say allow_insecure_tcp"
        )
    return TcpAddress(match["host"], int(match["port"]))


def _socket_path(address: str) -> Path:
    """Read what gRPC reads: `unix:relative`, `unix:/absolute` and `unix:///absolute`."""
    path = address.removeprefix("unix:")
    path = "/" + path.lstrip("/") if path.startswith("//") else path
    if not path or len(os.fsencode(path)) > _SUN_PATH_MAX:
        raise AddressError(f"address: expected unix:PATH with 1 to {_SUN_PATH_MAX} bytes of path, got {address!r}")
    return Path(path)


def prepare_socket(address: UnixAddress) -> None:
    """Make the folder, and room for the socket: one left behind is removed, one in use is refused.

    Raises ``AddressError`` and touches nothing that is not a dead socket.
    """
    folder = address.path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise AddressError(f"the folder of {address.path}: {error.strerror}") from error
    if found.st_uid not in (0, os.getuid()):
        raise AddressError(f"{folder} belongs to user {found.st_uid}, who could take the socket's place")
    mode = found.st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise AddressError(f"{folder} can be written by everybody: whoever likes could take the socket's place")
    _remove_dead_socket(address.path)


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
