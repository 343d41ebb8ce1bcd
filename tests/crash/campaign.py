"""A campaign: everything under load; one process killed, the records audited, everything back; and again.

host killed        the twin takes what is on the disk, the audit compares, the host comes back, and says the
                   digest that the twin has
client killed      another one comes in its place with what the record says, and asks for what was on its way again
all the while      each client checks each answer
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from guest_agent.kvm import kvm_available
from host_agent.journal.errors import JournalError
from tests.crash.audit import Finding, audit, audit_decisions
from tests.crash.child import Child
from tests.crash.moments import CommitWatch, Moment, children_of, has_lock, wait_for
from tests.crash.record import Record
from tests.crash.twin import Twin
from tests.host_process import HostProcess

PROGRESS_S: Final = 60.0
#: For what comes about once a second or so.
_WATCH_LONG_S: Final = 1.5
#: What a client has said is here within that.
_LINES_S: Final = 3.0
_RECOVERED: Final = re.compile(r"recovered: record (\d+), digest ([0-9a-f]+)")
_POLICY: Final = "retry:tries=2,then=retry-after:base=0.02,factor=1,tries=100,then=pause"


@dataclass
class Tally:
    """What came of a campaign."""

    kills: int = 0
    moments: Counter[Moment] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    #: Kills of the host after which something was there that nobody had been told of, and was not there that was sent.
    committed_unanswered: int = 0
    sent_uncommitted: int = 0


class Campaign:
    """All processes of a campaign in a folder."""

    def __init__(self, folder: Path, seed: int, *, host: HostProcess | None = None) -> None:
        self.chance = random.Random(seed)
        self.host = host or HostProcess(folder, *HOST_FLAGS)
        self.twin = Twin()
        self.tally = Tally()
        self.clients = [
            self._client("calls", "tests.crash.counting", way="calls"),
            self._client("stream", "tests.crash.counting", way="stream"),
            self._client("script", "tests.crash.guests", kind="script"),
        ]
        self.no_kvm = kvm_available()
        if not self.no_kvm:
            self.clients.append(self._client("kvm", "tests.crash.guests", kind="kvm"))
        policy = ("--policy", _POLICY, "--name", "controller", "--lease", "3600", "--timeline")
        command = ("-m", "fpstated", "controller", "--host", self.host.address, *policy)
        self.controller = Child(Record("controller"), *command)

    def _client(self, name: str, module: str, **start: object) -> Child:
        start |= {"address": self.host.address, "seed": self.chance.getrandbits(32)}
        return Child(Record(name), "-m", module, **start)

    @property
    def children(self) -> list[Child]:
        """Everything but the host."""
        return [*self.clients, self.controller]

    # -- the course ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Everything begins, and has done something."""
        self.host.start()
        for child in self.children:
            child.start()
        self._wait_for_progress()

    def round(self) -> None:
        """One kill, and everything is back."""
        before = self._progress()
        kind = self.chance.choices(("host", "guest", "controller"), (6, 3, 1))[0]
        if kind == "host":
            self.kill_host()
            self._back()
        elif kind == "guest":
            # One that counts goes on where it was; another begins anew, and shall come to its end now and then.
            self._kill_guest(self.chance.choices(self.clients, (3, 3, 1, 1)[: len(self.clients)])[0])
        else:
            self._kill_controller()
        self._wait_for_progress(before)

    def is_done(self, kills: int) -> bool:
        """Whether so many kills, and whatever else has to have happened, have happened."""
        return self.tally.kills >= kills

    def end(self) -> None:
        """Everyone stops in peace, and the last audit."""
        for child in self.children:
            child.kill()
        status = self.host.stop()
        if status:
            self.tally.findings.append(("diverged", f"the host ended with status {status}"))
        self._audit()

    def close(self) -> None:
        """Nothing is left running."""
        for child in self.children:
            child.kill()
        self.host.kill()

    def findings(self) -> list[Finding]:
        """What the audits and the clients have found wrong."""
        return [*self.tally.findings, *(found for child in self.children for found in child.record.bad)]

    @property
    def acknowledged(self) -> int:
        """How many events, calls and decisions were acknowledged to somebody."""
        return sum(child.record.acknowledged for child in self.children)

    @property
    def verified(self) -> int:
        """How many guests ran to their end and found everything as they had left it."""
        return sum(child.record.verified for child in self.children)

    # -- kills ---------------------------------------------------------------------------------------------------------

    def kill_host(self) -> None:
        """Kill the host where chance aims at, and audit what is left."""
        aim = self.chance.choices(("any", "commit", "snapshot"), (2, 3, 2))[0]
        time.sleep(self.chance.random() * 0.1)
        pid = self.host.pid
        if aim == "snapshot":
            wait_for(lambda: bool(children_of(pid)), _WATCH_LONG_S)
        snapshot = bool(children_of(pid))
        with closing(CommitWatch(pid)) as committing:
            commit = wait_for(committing, pause_s=0) if aim == "commit" else committing()
            self._end_host()
        where = Moment.HOST_COMMIT if commit else Moment.HOST_SNAPSHOT if snapshot else Moment.HOST_SERVING
        self._killed(where)
        self._audit()

    def _back(self) -> None:
        """The host comes back; now and then it is killed before it has."""
        while self.chance.random() < 0.25:
            self._kill_starting_host()
        self.host.log.clear()
        watched = self.controller.record.watched  # before it can have found the host
        self.host.start()
        self._compare_digest()
        if self.chance.random() < 0.3:
            # Else it might never come to a decision, if it takes its time and the next kill comes first.
            wait_for(lambda: self.controller.record.watched > watched, PROGRESS_S)

    def _kill_starting_host(self) -> None:
        delay_s = self.chance.random() * 0.08
        self.host.log.clear()
        self.host.launch()
        pid = self.host.pid
        if self.chance.random() < 0.7:
            wait_for(lambda: has_lock(self.host.state_dir, pid), PROGRESS_S)
        time.sleep(delay_s)
        recovering = has_lock(self.host.state_dir, pid)
        ready = any("listening" in line for line in self.host.log)
        self._end_host()
        where = Moment.HOST_RECOVERY if recovering and not ready else Moment.HOST_START
        self._killed(Moment.HOST_SERVING if ready else where)
        self._audit()

    def _kill_guest(self, child: Child) -> None:
        time.sleep(self.chance.random() * 0.1)
        wait_for(lambda: child.record.in_flight)
        child.kill()
        self._killed(Moment.GUEST_BATCH if child.record.in_flight else Moment.GUEST_IDLE)
        child.start()

    def _kill_controller(self) -> None:
        record = self.controller.record
        wait_for(lambda: bool(record.deciding), _WATCH_LONG_S)
        self.controller.kill()
        self._killed(Moment.CONTROLLER_DECISION if record.deciding else Moment.CONTROLLER_IDLE)
        record.came_back()
        self.controller.start()

    def _end_host(self) -> None:
        """SIGKILL. What it has started goes on for a while, as it would for anybody."""
        self.host.kill()

    def _killed(self, where: Moment) -> None:
        self.tally.kills += 1
        self.tally.moments[where] += 1

    # -- the checks ----------------------------------------------------------------------------------------------------

    def _audit(self) -> None:
        """What is on the disk of a dead host, against what everyone was told."""
        try:
            self.twin.advance(self.host.state_dir)
        except JournalError as error:
            self.tally.findings.append(("diverged", f"the journal: {error}{getattr(error, 'details', '')}"))
            return
        self.twin.machine.check()
        if not wait_for(lambda: not any(self._findings()), _LINES_S):
            self.tally.findings += self._findings()
        self._count_what_was_open()

    def _findings(self) -> Iterator[Finding]:
        yield from audit_decisions(self.twin)
        for child in self.children:
            yield from audit(child.record, self.twin)

    def _count_what_was_open(self) -> None:
        state = self.twin.machine.state
        pairs = [
            (state.side(state.vcpu(vcpu)).next_seq - 1, child.record.acked.get(vcpu, 0), sent)
            for child in self.clients[:2]
            for vcpu, sent in list(child.record.sent.items())
            if child.record.acked.get(vcpu)
        ]
        self.tally.committed_unanswered += any(there > acked for there, acked, _ in pairs)
        self.tally.sent_uncommitted += any(sent > there for there, _, sent in pairs)

    def _compare_digest(self) -> None:
        """The host that came back is the twin.

        It may have found one commit more: one that was in the log and not yet in the log's index when the host was
        killed. Whoever came while its snapshotter still lived went by the index. Nobody was told of it.
        """
        wait_for(lambda: any(map(_RECOVERED.search, list(self.host.log))), PROGRESS_S)
        found = next(match for line in list(self.host.log) if (match := _RECOVERED.search(line)))
        n, digest = int(found[1]), found[2]
        self.twin.advance(self.host.state_dir, through=n)
        expected = self.twin.machine.digest()
        if (n, digest) != (self.twin.n, expected):
            text = f"the host came back as record {n}, digest {digest}; the twin is {self.twin.n}, {expected}"
            self.tally.findings.append(("diverged", text))

    # -- progress ------------------------------------------------------------------------------------------------------

    def _progress(self) -> list[int]:
        return [child.record.acknowledged for child in self.clients[:2]]

    def _wait_for_progress(self, before: list[int] | None = None) -> None:
        """The counting clients were told something new since, so they have found the host again."""
        before = before or [0, 0]
        until = time.monotonic() + PROGRESS_S
        while any(now <= then for now, then in zip(self._progress(), before, strict=True)):
            self.check_alive()
            if time.monotonic() > until:
                raise TimeoutError(
                    f"no progress within {PROGRESS_S:g} s: {self._progress()}, host: {self.host.log[-5:]}"
                )
            time.sleep(0.005)

    def check_alive(self) -> None:
        """Raise where a client has ended by itself."""
        for child in self.children:
            if child.ended:
                raise RuntimeError(f"{child.record.name} has ended by itself:\n{''.join(child.errors)}")


#: A snapshot every second or so, and the digest of what was recovered in the log.
HOST_FLAGS: Final = ("--faults", "--snapshot-every", "4000", "--log-level", "debug")
