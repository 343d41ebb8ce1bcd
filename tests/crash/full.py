"""A campaign on a disk that is really full, again and again: filled to the last byte, and freed, while guests run.

A small file system of its own where one may be mounted; else a limit on the size of the host's files (RLIMIT_FSIZE),
which SQLite meets as a full disk as well.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fpstate.v1 import vm_pb2, vm_pb2_grpc

from tests.crash.campaign import HOST_FLAGS, PROGRESS_S, Campaign
from tests.crash.moments import wait_for
from tests.host_process import READY_S, HostProcess, lift_file_size, mounted_tmpfs

#: For the records that are kept, the log, and three snapshots, which grow with each VM that was: a few minutes of work.
_SIZE = "128m"
#: For the index of the log (the -shm file), which whoever opens the log of a dead host makes anew.
_INDEX_BYTES = 256 * 1024


class FullCampaign(Campaign):
    """The campaign, with a host whose disk fills up. ``reason`` is why there is no file system of its own; or empty."""

    def __init__(self, folder: Path, seed: int, reason: str) -> None:
        state_dir = folder / "small" / "state"
        flags = (*HOST_FLAGS, "--history", "20000")
        super().__init__(folder, seed, host=HostProcess(folder, *flags, state_dir=state_dir))
        self.reason = reason
        self.filled = 0
        self.killed_full = 0
        self.started_full = 0
        self._ballast = folder / "small" / "ballast"

    def round(self) -> None:
        """Fill the disk and free it, or a kill."""
        if self.chance.random() < 0.5:
            before = self._progress()
            self._fill_and_free()
            self._wait_for_progress(before)
        else:
            super().round()
        self.twin.follow(self.host.state_dir)  # before the host forgets what the twin has not seen

    def is_done(self, kills: int) -> bool:
        """The disk was full as well."""
        return super().is_done(kills) and self.filled > 0

    def figures(self) -> str:
        """What happened to the disk, and what clients have heard of it."""
        heard = ", ".join(f"{reason} {count}" for reason, count in sorted(self._heard().items()))
        where = f"files limited, since nothing can be mounted ({self.reason})" if self.reason else f"tmpfs of {_SIZE}"
        return (
            f"disk full: {self.filled} times ({where}), the host killed {self.killed_full} times meanwhile, "
            f"and {self.started_full} times back before there was room; "
            f"clients heard: {heard or 'nothing'}"
        )

    def _heard(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for child in self.children:
            total += child.record.away
        return total

    def _fill_and_free(self) -> None:
        before = self._heard()["STORAGE_FULL"]
        self._fill()
        if wait_for(lambda: self._heard()["STORAGE_FULL"] > before, PROGRESS_S):
            self.filled += 1
            self._read()
        else:
            self.tally.findings.append(("diverged", "the disk is full, and nobody has heard of it"))
        if self.chance.random() < 0.4:
            self.killed_full += 1
            self.kill_host()
            self._start_full()
        else:
            self._free()

    def _audit(self) -> None:
        full = self._ballast.exists()
        if full:
            os.truncate(self._ballast, max(0, self._ballast.stat().st_size - _INDEX_BYTES))
        super()._audit()
        if full:
            self._fill()

    def _start_full(self) -> None:
        """A host that finds its disk full when it comes says so and ends, or refuses work until there is room."""
        self.host.log.clear()
        self.host.launch()
        wait_for(lambda: not self.host.running or any("listening" in line for line in self.host.log), PROGRESS_S)
        if self.host.running:
            self.started_full += 1
            self._free()
            return
        said = "".join(self.host.log[-20:])
        if self.host.ended() != 1 or "the disk is full" not in said:
            self.tally.findings.append(("diverged", f"it did not start on a full disk: {said}"))
        self._free()
        self._back()

    def _read(self) -> None:
        """Reads go on."""
        with self.host.channel() as channel:
            vm_pb2_grpc.VmServiceStub(channel).ListVms(vm_pb2.ListVmsRequest(), timeout=READY_S)

    def _fill(self) -> None:
        if self.reason:
            # The log is at its largest: it is written from its beginning on after a checkpoint, and then has room.
            resource.prlimit(self.host.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with self._ballast.open("ab", buffering=0) as out:
            for size in (1 << 20, 4096, 1):
                while _written(out.fileno(), size):
                    pass

    def _free(self) -> None:
        if self.reason:
            if self.host.running:
                lift_file_size(self.host.pid)
        else:
            self._ballast.unlink()


def _written(fd: int, size: int) -> int:
    try:
        return os.write(fd, bytes(size))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return 0


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A small file system at FOLDER/small until the end of the block; yields why there is none, or nothing."""
    small = folder / "small"
    reason = mounted_tmpfs(small, _SIZE)
    try:
        yield reason
    finally:
        if not reason:
            # Lazily: what a killed process had open is closed behind its end, by the kernel.
            subprocess.run(["umount", "--lazy", str(small)], check=True, capture_output=True)
