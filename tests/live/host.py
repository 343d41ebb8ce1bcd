"""A live host agent with its log, its metrics and what the kernel says of its process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import grpc

from fpstated.link.tls import ClientTls
from tests.service.certificates import Certificates

WAIT_S: Final = 60.0
_READY: Final = re.compile(r"listening on (\S+), metrics on http://(\S+)/metrics")
#: Connections are each their own, and nobody asks a web proxy.
CHANNEL_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


@dataclass(frozen=True, slots=True)
class Figures:
    """What a process has at a moment: resident memory in KiB, file descriptors, threads."""

    rss_kib: int
    fds: int
    threads: int


def figures_of(pid: int) -> Figures:
    """Read them from /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    rss, threads = (int(re.search(rf"{key}:\s+(\d+)", status)[1]) for key in ("VmRSS", "Threads"))  # type: ignore[index]
    return Figures(rss, len(list(Path(f"/proc/{pid}/fd").iterdir())), threads)


class LiveHost:
    """``fpstated host`` on a state directory in ``folder``: mutual TLS on a port, or a unix socket without.

    Every invariant is checked after every command unless ``check`` is false. A context manager; ``prefix`` goes before
    the command line (``ip netns exec NAME``), ``listen`` is where it listens instead.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        certificates: Certificates | None = None,
        check: bool = True,
        listen: str = "",
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.state_dir = folder / "state"
        self.certificates = certificates
        self.log: list[str] = []
        self.address = self._metrics = ""
        self._prefix = prefix
        self._arguments = [*self._listen(folder, listen), "--state-dir", str(self.state_dir), "--log-format", "json"]
        self._arguments += [
            "--metrics",
            "127.0.0.1:0",
            "--faults",
            *(["--check-invariants"] if check else []),
            *arguments,
        ]
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()

    def _listen(self, folder: Path, listen: str) -> list[str]:
        if self.certificates is None:
            return ["--listen", listen or f"unix:{folder}/host.sock"]
        files = self.certificates.host
        tls = ["--tls-cert", str(files.cert), "--tls-key", str(files.key), "--tls-ca", str(files.ca)]
        return ["--listen", listen or "localhost:0", *tls]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it listens. Raises ``RuntimeError`` with its log where it does not."""
        self._ready.clear()
        command = [*self._prefix, sys.executable, "-m", "fpstated", "host", *self._arguments]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        if not self._ready.wait(WAIT_S) or not self.address:
            self.kill()
            raise RuntimeError(f"the host did not start: {self.log[-5:]}")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            ready = _READY.search(line)
            if ready is not None:
                self.address, self._metrics = ready[1], ready[2]
                self._ready.set()
        self._ready.set()
        process.stderr.close()

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._ended()

    def kill(self) -> None:
        """SIGKILL. Nothing to do where it has ended."""
        if self._process is not None:
            self._process.kill()
            self._ended()

    def _ended(self) -> int:
        assert self._process is not None
        assert self._reader is not None
        status = self._process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return status

    # -- what is seen from outside -------------------------------------------------------------------------------------

    def tls(self, identity: str) -> ClientTls | None:
        """The certificate of a principal; None on a socket, where everybody is the same."""
        return self.certificates.client(identity) if self.certificates is not None else None

    def channel(self, identity: str = "operator/tester") -> grpc.aio.Channel:
        """A connection of its own."""
        tls = self.tls(identity)
        if tls is None:
            return grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.address, tls.credentials(), options=CHANNEL_OPTIONS)

    def metrics(self) -> dict[str, float]:
        """Every sample of a scrape, by its name with its labels."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=WAIT_S) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def figures(self) -> Figures:
        """Memory, descriptors and threads of the process."""
        return figures_of(self.pid)

    def complaints(self) -> list[str]:
        """The lines of its log that tell of a bug: errors, and tracebacks by whichever way."""
        return [line for line in self.log if _is_complaint(line)]

    def settled(self, wanted: dict[str, float], limit_s: float = WAIT_S) -> dict[str, float]:
        """Wait until metrics are at most ``wanted``; returns those that are not within ``limit_s``."""
        deadline = time.monotonic() + limit_s
        while True:
            found = self.metrics()
            over = {name: found[name] for name, most in wanted.items() if found[name] > most}
            if not over or time.monotonic() > deadline:
                return over
            time.sleep(0.05)


def _is_complaint(line: str) -> bool:
    try:
        return json.loads(line)["level"] in ("error", "critical")
    except (ValueError, KeyError, TypeError):
        return "Traceback" in line
