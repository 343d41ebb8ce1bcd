"""What the service manager hears of a host: a socket of ours stands for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fpstated.sd_notify import sd_notify, watchdog_s


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The receiving end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "notify"))
        receiving.settimeout(30)
        yield receiving


def test_ready_watchdog_stopping(manager: socket.socket, tmp_path: Path) -> None:
    """READY once it listens, WATCHDOG again and again, STOPPING at SIGTERM, and then the end."""
    environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "100000"}
    command = [sys.executable, "-m", "fpstated", "host", "--listen", f"unix:{tmp_path}/s"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        first = manager.recv(4096).decode()
        assert first.splitlines()[0] == "READY=1"
        assert (tmp_path / "s").is_socket()
        assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        process.send_signal(signal.SIGTERM)
        heard = b"WATCHDOG=1"
        while heard == b"WATCHDOG=1":
            heard = manager.recv(4096)
        assert heard == b"STOPPING=1"
        assert process.wait(30) == 0


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that begins with @."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(f"\0fpstated-test-{os.getpid()}")
        receiving.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@fpstated-test-{os.getpid()}")
        sd_notify("READY=1")
        assert receiving.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no reason to fail."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    sd_notify("READY=1")


@pytest.mark.parametrize(
    ("limit", "pid", "interval_s"),
    [("2000000", "", 1.0), ("2000000", "own", 1.0), ("2000000", "1", None), ("", "", None), ("0", "", None)],
)
def test_how_often_the_watchdog_wants_to_hear(
    limit: str, pid: str, interval_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what it waits, and only where it is us whom it waits for."""
    monkeypatch.setenv("WATCHDOG_USEC", limit)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_s() == interval_s
