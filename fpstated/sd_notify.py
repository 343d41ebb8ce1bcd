"""What systemd is told of a service: READY, STOPPING, WATCHDOG. Without NOTIFY_SOCKET nobody is told anything.

Source: sd_notify(3), sd_watchdog_enabled(3): one datagram per message; a name that begins with @ is abstract.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def sd_notify(message: str) -> None:
    """Send ``message``, such as `READY=1`. A service manager that does not listen is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] in ("/", "@"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            notify.sendall(message.encode())


def watchdog_s() -> float | None:
    """How often to say WATCHDOG=1, in seconds: half of what the manager waits; None where it does not wait for us."""
    limit_us, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    mine = pid in ("", str(os.getpid()))
    return int(limit_us) / 2_000_000 if mine and limit_us.isdecimal() and int(limit_us) > 0 else None
