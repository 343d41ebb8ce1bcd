"""A campaign on a disk that fails: errors under the journal, and kills that are as bad as a power cut.

an error of a write, a sync ...   the host ends by itself with status 1, and what was acknowledged is there
no room                           the host goes back, refuses, and goes on; nothing acknowledged is touched
a power cut                       what was never synced is there or not, sector by sector, as chance has it
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from host_agent.journal.store import DATABASE
from tests.crash.campaign import HOST_FLAGS, PROGRESS_S, Campaign
from tests.crash.disk import KINDS, power_cut
from tests.crash.host import ARM
from tests.crash.moments import children_of, wait_for
from tests.host_process import HostProcess

#: How long to wait for an armed fault to fire, in seconds: a checkpoint comes once in a while.
_FIRE_S = 3.0
#: Kinds that a host survives: there was no room, and there is again.
_FULL = frozenset(kind for kind in KINDS if kind.endswith("full"))


class FaultCampaign(Campaign):
    """The campaign, with a host on a faulty disk."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed, host=HostProcess(folder, *HOST_FLAGS, module="tests.crash.host"))
        self.fired: Counter[str] = Counter()
        self._next: list[str] = []
        self.failures = 0
        self.sectors_lost = 0
        self.host.on_line = self._heard

    def round(self) -> None:
        """A fault, or a kill."""
        if self.chance.random() < 0.6:
            before = self._progress()
            self._fault(self._kind())
            self._wait_for_progress(before)
        else:
            super().round()

    def is_done(self, kills: int) -> bool:
        """Each kind of fault has fired as well."""
        return super().is_done(kills) and all(self.fired[kind] for kind in KINDS)

    def _kind(self) -> str:
        """All in turn, in an order of chance's; those first that have not fired yet."""
        if not self._next:
            self._next = self.chance.sample(sorted(KINDS), len(KINDS))
            self._next.sort(key=lambda kind: not self.fired[kind])
        return self._next.pop()

    def figures(self) -> str:
        """What has fired, and what clients have heard of it."""
        away: Counter[str] = Counter()
        for child in self.children:
            away += child.record.away
        fired = ", ".join(f"{kind} {self.fired[kind]}" for kind in KINDS)
        heard = ", ".join(f"{reason} {count}" for reason, count in sorted(away.items()))
        return (
            f"faults fired: {fired}\n"
            f"clients heard: {heard or 'nothing'}; the host ended by itself {self.failures} times\n"
            f"unsynced sectors forgotten at power cuts: {self.sectors_lost}"
        )

    # -- faults --------------------------------------------------------------------------------------------------------

    def _fault(self, kind: str) -> None:
        """Arm one, and wait for what becomes of it."""
        if kind == "read-io" or (kind == "size-io" and self.chance.random() < 0.5):
            self._fault_at_start(kind)
            return
        before = self.fired[kind]
        self.host.tell(f"arm {kind} {self.chance.randint(1, 12)}")
        if not wait_for(lambda: self.fired[kind] > before or not self.host.running, _FIRE_S):
            return  # it stays armed, and fires when its operation comes
        if kind not in _FULL:
            self._host_ended()

    def _host_ended(self) -> None:
        """A host whose disk fails ends by itself; a checkpoint that fails for want of room is no such case."""
        if not wait_for(lambda: not self.host.running, PROGRESS_S):
            self.tally.findings.append(("diverged", "the disk failed, and the host goes on"))
            return
        self._ended_by_itself()
        self._back()

    def _ended_by_itself(self) -> None:
        children = children_of(self.host.pid)
        status = self.host.ended()
        self.failures += 1
        said = "".join(line for line in self.host.log if "acknowledged" in line or "fpstated host: " in line)
        if status != 1 or not said:
            self.tally.findings.append(("diverged", f"the disk failed: status {status}, {said!r}"))
        _kill(children)
        self._settle_disk(self.chance.random() < 0.5)
        self._audit()

    def _fault_at_start(self, kind: str) -> None:
        """Kill the host, and let the disk fail while it recovers."""
        self.kill_host()
        self.host.environment[ARM] = f"{kind} {self.chance.randint(1, 40)}"
        self.host.log.clear()
        self.host.launch()
        del self.host.environment[ARM]
        wait_for(lambda: not self.host.running or any("listening" in line for line in self.host.log), PROGRESS_S)
        if self.host.running:
            self._compare_digest()  # it did not come to so many reads
        else:
            self._ended_by_itself()
            self._back()

    # -- the disk ------------------------------------------------------------------------------------------------------

    def _end_host(self) -> None:
        """A power cut: nobody goes on, and the disk may not have come to what was not synced."""
        children = children_of(self.host.pid)
        super()._end_host()
        _kill(children)
        self._settle_disk(cut=True)

    def _settle_disk(self, cut: bool) -> None:
        """What was not synced: the disk has come to it after all, or there was a power cut and it has not."""
        if cut:
            self.sectors_lost += power_cut(self.host.state_dir, self.chance)
        for undo in self.host.state_dir.glob("*.undo"):
            undo.unlink()
        (self.host.state_dir / f"{DATABASE}-shm").unlink(missing_ok=True)

    def check_alive(self) -> None:
        """The host may be down as well: a fault that was armed long ago may fire at last."""
        super().check_alive()
        if not self.host.running:
            self._ended_by_itself()
            self._back()

    def _heard(self, line: str) -> None:
        word, _, kind = line.strip().partition(" ")
        if word == "fired":
            self.fired[kind] += 1
        self.host.log.append(line)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + PROGRESS_S
    while any(Path(f"/proc/{pid}/cmdline").exists() and _is_alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.002)


def _is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
