"""A host agent as a process that can be killed, with the state directory it comes back on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from fpstate.v1 import host_pb2, host_pb2_grpc

READY_S = 60.0


class HostProcess:
    """``fpstated host`` on a socket and a state directory in ``folder``. Start it, kill it, start it again."""

    def __init__(self, folder: Path, *arguments: str, state_dir: Path | None = None, module: str = "fpstated") -> None:
        self.state_dir = state_dir or folder / "state"
        self.address = f"unix:{folder}/host.sock"
        self._arguments = (module, "host", "--listen", self.address, "--state-dir", str(self.state_dir), *arguments)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.log: list[str] = []
        #: Called with each line it says on standard error, in a thread of its own.
        self.on_line: Callable[[str], None] = self.log.append
        #: Beside those of this process.
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, limit: Callable[[], None] | None = None) -> None:
        """Start it and wait until it answers. ``limit`` is called in the child before it becomes the host."""
        self.launch(limit=limit)
        with self.channel() as channel:
            stub = host_pb2_grpc.HostServiceStub(channel)
            stub.GetHostInfo(host_pb2.GetHostInfoRequest(), timeout=READY_S, wait_for_ready=True)

    def launch(self, *, limit: Callable[[], None] | None = None) -> None:
        """Start it, and wait for nothing."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self._arguments],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | self.environment,
            preexec_fn=limit,  # noqa: PLW1509 -- a limit of the child is what is tested
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.on_line(line)
        process.stderr.close()

    def channel(self) -> grpc.Channel:
        """A connection of its own to the host."""
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100))
        return grpc.insecure_channel(self.address, options=options)

    def kill(self) -> None:
        """SIGKILL: no time for a last word. Nothing to do where it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._shut()

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        """Wait for it to end by itself; the exit status."""
        assert self._process is not None
        status = self._process.wait(READY_S)
        self._shut()
        return status

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def tell(self, line: str) -> None:
        """Write a line to its standard input, for those who read it."""
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _shut(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._reader is not None:
            self._reader.join(READY_S)  # what it has said is in the log, and nothing comes later


def limit_file_size(size_bytes: int) -> Callable[[], None]:
    """For ``HostProcess.start``: no file of the process grows beyond so many bytes (RLIMIT_FSIZE)."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))

    return limit


def lift_file_size(pid: int) -> None:
    """Let the files of a process grow again."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def mounted_tmpfs(folder: Path, size: str) -> str:
    """Mount a file system of ``size`` on a folder; returns why not, or nothing."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700,uid={os.getuid()}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() if done.returncode else ""
