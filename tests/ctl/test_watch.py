"""``fpstated ctl watch`` as a process: what it shows, what it comes through, and how it ends."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from tests.ctl.rig import WAIT_S, CtlHost, ctl_host
from tests.host_process import HostProcess


class Watch:
    """The command, and its lines as they come."""

    def __init__(self, host: CtlHost | HostProcess, *arguments: str) -> None:
        command = [sys.executable, "-m", "fpstated", "ctl", "--address", host.address, "watch", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.out: queue.Queue[str] = queue.Queue()
        self.err: queue.Queue[str] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: TextIO | None, lines: queue.Queue[str]) -> None:
        assert stream is not None
        with stream:
            for line in stream:
                lines.put(line.rstrip("\n"))

    def until(self, wanted: Callable[[str], bool], lines: queue.Queue[str] | None = None) -> list[str]:
        """The lines up to the first that is wanted."""
        found: list[str] = []
        while not found or not wanted(found[-1]):
            found.append((lines or self.out).get(timeout=WAIT_S))
        return found

    def ended(self) -> tuple[int, list[str]]:
        """Wait for its end: the status, and what it said on standard error."""
        status = self.process.wait(WAIT_S)
        for reader in self._readers:
            reader.join(WAIT_S)
        return status, list(self.err.queue)


@contextmanager
def watching(host: CtlHost | HostProcess, *arguments: str) -> Iterator[Watch]:
    """A watch that is gone at the end of the block."""
    watch = Watch(host, *arguments)
    try:
        yield watch
    finally:
        watch.process.kill()
        watch.ended()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[CtlHost]:
    """A host with a VM that may use tiles."""
    with ctl_host(tmp_path) as found:
        for line in ("vms create a", "vms permission a --request 18", "vcpus create a/0"):
            assert found.ctl(line).status == 0
        yield found


def has(*words: str) -> Callable[[str], bool]:
    """A line with these in it."""
    return lambda line: all(word in line for word in words)


def test_what_is_there_and_what_changes(host: CtlHost) -> None:
    """The columns of the list come first; then each change is a line, until Ctrl-C, which is the end and no error."""
    with watching(host) as watch:
        assert watch.until(has("vms/a/vcpus/0", "CREATED"))[1:] == [
            "         4  CREATED  host                            SERVING, byte limit none",
            "         4  CREATED  vms/a                           uses 2,624 B, limit none",
            "         4  CREATED  vms/a/vcpus/0                   OUTSIDE, XCR0 0x1, XFD 0x0, 2,560 B, next 1",
        ]
        host.get_stuck("vms/a/vcpus/0")
        lines = watch.until(has("vms/a/vcpus/0/exits/1", "CREATED"))
        assert lines[-1].endswith("OPEN, NO_MEMORY, needs 10,816 B, try 1, generation 1")
        assert any(has("UPDATED", "vms/a/vcpus/0 ", "PARKED")(line) for line in lines)
        assert any(has("CREATED", "sessions/s-", "guest, epoch")(line) for line in lines)
        assert host.ctl("resolve a/0/1 retry").status == 0
        lines = watch.until(has("vms/a/vcpus/0/exits/1", "UPDATED"))
        assert "RESOLVED" in lines[-1]
        assert "RETRY by fpstated-ctl, COMMITTED" in lines[-1]
        host.ctl("vms delete a --force")
        watch.until(has("DELETED", "vms/a "))
        watch.process.send_signal(signal.SIGINT)
        assert watch.ended() == (0, [])


def test_what_is_narrowed(host: CtlHost) -> None:
    """By VM and by kind; as JSON it is a ResourceChange a line."""
    with watching(host, "--vm", "a", "--kind", "vm", "--json") as watch:
        (first,) = watch.until(has("vms/a"))
        assert json.loads(first)["vm"]["name"] == "vms/a"
        host.ctl("vms create b")
        host.ctl("vcpus create b/0")
        host.ctl("limits set a 1M")
        (line,) = watch.until(has("vms/"))
        change = json.loads(line)
        assert (change["kind"], change["name"]) == ("CHANGE_KIND_UPDATED", "vms/a")
        assert change["vm"]["byteLimit"] == "1048576"


def test_a_host_that_comes_back_is_followed(host: CtlHost) -> None:
    """Killed and started again it has forgotten what changed: the watch says so, lists, and shows what differs."""
    with watching(host, "--kind", "vm") as watch:
        watch.until(has("vms/a"))
        host.process.kill()
        watch.until(has("waiting for the host"), watch.err)
        host.process.start()
        assert host.ctl("vms create b").status == 0
        found = watch.until(has("vms/b"))
        assert len(found) == 1, "nothing that was known is shown again"
        assert "CREATED" in found[0]
        assert host.ctl("vms delete a --force").status == 0
        watch.until(has("DELETED", "vms/a"))
        watch.process.send_signal(signal.SIGINT)
        status, said = watch.ended()
        assert status == 0
        assert "Traceback" not in "".join(said)


def test_another_host_at_the_same_place_is_another_history(host: CtlHost) -> None:
    """Nothing of the first one is there: what was known is gone, and what is new is made."""
    with watching(host, "--kind", "vm") as watch:
        watch.until(has("vms/a"))
        host.process.kill()
        watch.until(has("waiting for the host"), watch.err)
        shutil.rmtree(host.process.state_dir)
        host.process.start()
        host.ctl("vms create b")
        found = watch.until(has("vms/b"))
        assert [line.split()[1:3] for line in found] == [["DELETED", "vms/a"], ["CREATED", "vms/b"]]
        watch.until(has("another history"), watch.err)


def test_a_reader_that_has_seen_enough(host: CtlHost) -> None:
    """A pipe that is closed ends it, without a word, at the next change."""
    line = '"$0" -m fpstated ctl --address "$1" watch --kind vm | head -2; echo "${PIPESTATUS[0]}"'
    command = ["bash", "-c", line, sys.executable, host.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as piped:
        assert piped.stdout is not None
        assert has("vms/a")([piped.stdout.readline() for _ in range(2)][-1])
        for nr in range(1, 1000):
            if piped.poll() is not None:
                break
            assert host.ctl(f"limits set a {nr}M").status == 0
        out, err = piped.communicate(timeout=WAIT_S)
    assert (out, err) == ("0\n", "")
