"""The checks on a live history: what can be told from what clients were told, what exits did and what processes did.

The books are the simulator's (``fault_lab.sim.books``); what a machine alone knows is not asked. Records are those of
the file, in its order. A call has happened at some moment between its ``invoke`` and its end, so what two calls say is
compared only where one had ended before the other began.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.hit import matches
from fault_lab.live.host_link import RUNNER
from fault_lab.sim.books import ENDED, Books
from fault_lab.sim.rules import ALWAYS, EVENTUALLY, Violation
from vmm_controller.policy import DecisionKind

Record = dict[str, Any]
#: What can be asked of a live history; for the others one has to look into a machine.
JUDGED: Final = (
    "invariants",
    "one-exit-a-failure",
    "one-decision-a-generation",
    "no-decision-after-end",
    "epochs-rise",
    "acknowledged-is-there",
    "numbers-once",
    "final-once",
    "guest-sees-its-bytes",
    "session-goes-on",
    "no-stuck-exit",
    "guests-end",
)
_SUBMITTED: Final = re.compile(r"epoch \d+: (\d+) (.*)")
_WAITED: Final = re.compile(r"epoch \d+: (\d+)")
_EPOCH: Final = re.compile(r"epoch (\d+)(?:, next \[(.*)\])?")
_NEXT: Final = re.compile(r"(\S+) next (\d+)")
#: The reason of a refusal by a host that found itself wrong.
_INTERNAL: Final = "INTERNAL_INVARIANT"
#: Outcomes that are not final.
_OPEN: Final = ("pending", "blocked")
#: What an ended lease, or the end of its vCPU, makes of a guest's event: no mistake of the script's.
_NO_MISTAKE: Final = frozenset(
    {"VCPU_KILLED", "VCPU_BROKEN", "VCPU_NOT_ENTERED", "SESSION_FENCED", "VCPU_NOT_IN_SESSION", "SEQ_GAP"}
    | {"OUTCOME_FORGOTTEN"}
)


def is_the_end(record: Record) -> bool:
    """Whether a guest has heard that its host found itself wrong: nothing goes on behind that."""
    return record["type"] == "guest" and record["state"] == "gives up" and _INTERNAL in record["why"]


class Judge:
    """Reads a history record by record. ``seen`` are the "sometimes" that came about."""

    def __init__(self, plan: plan_pb2.Plan) -> None:
        self._plan = plan
        self._checked = frozenset(plan.checks.always) or frozenset(ALWAYS)
        self._books = Books(self.fail)
        there = plan.topology
        first = there.hosts[0].name
        self._host_of = {f"vms/{vm.name}": vm.host or first for vm in there.vms}
        self._host_of |= {each.name: each.host or first for each in there.controllers}
        self._ephemeral = {host.name for host in there.hosts if host.ephemeral}
        #: By host, how often it has begun anew without what it knew: a name means another thing then.
        self._lives: Counter[str] = Counter()
        self._calls: dict[int, Record] = {}
        self._epochs: dict[tuple[str, int], int] = {}
        self._handed_out: set[tuple[str, int, int]] = set()
        self._failures: Counter[str] = Counter()
        self._fired: set[str] = set()
        self._endings: dict[str, str] = {}

    @property
    def seen(self) -> frozenset[str]:
        """``fired:`` and ``decided-`` of everything that came about."""
        kinds = {kind.name for kind in DecisionKind} & self._books.decisions
        decided = {f"decided-{kind.lower().replace('_', '-')}" for kind in kinds}
        return frozenset(decided | {f"fired:{name}" for name in self._fired})

    def fail(self, check: str, text: str) -> None:
        """A check does not hold; nothing to do where the plan leaves it out."""
        if check in self._checked or check in EVENTUALLY:
            raise Violation(check, text)

    def take(self, record: Record) -> None:
        """One more record. Raises ``Violation``."""
        match record["type"]:
            case "invoke":
                self._calls[record["call"]] = record | {"before": dict(self._epochs)}
            case "ok":
                self._answered(record, self._calls.pop(record["call"]))
            case "exit":
                self._exit(record)
            case "guest":
                self._guest(record)
            case "fault":
                self._fired.add(record["fault"])
                if record["point"].startswith("fpstate.realloc."):
                    self._failures[record["entity"]] += 1
            case "node" if record["state"] == "killed" or record["state"].startswith("ended"):
                self._books.disturbed.add(record["node"])
                if record["node"] in self._ephemeral:
                    self._forgets(record["node"])
            case _:
                pass

    def _forgets(self, host: str) -> None:
        """A host without a journal has ended: what comes next is another history."""
        self._lives[host] += 1
        mine = [vm for vm, its in self._host_of.items() if its == host]
        gone = [key for key in self._books.exits if key[1].partition("/vcpus/")[0] in mine]
        for key in gone:
            del self._books.exits[key]
        for vcpu in [each for each in self._failures if each.partition("/vcpus/")[0] in mine]:
            del self._failures[vcpu]

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _answered(self, reply: Record, invoke: Record) -> None:
        match reply["f"]:
            case "OpenSession" | "AcquireControl":
                self._opened(reply, invoke)
            case "SubmitEvents" if found := _SUBMITTED.fullmatch(invoke["value"]):
                self._outcome(reply["process"], int(found[1]), reply["value"], taken=True)
            case "WaitOutcome" if found := _WAITED.fullmatch(invoke["value"]):
                self._outcome(reply["process"], int(found[1]), reply["value"], taken=False)
            case "ListVcpus":
                host = reply["process"].removeprefix(f"{RUNNER}/")
                if host not in self._ephemeral:
                    for vcpu, next_seq in _NEXT.findall(reply["value"]):
                        self._remembers(self._uid(vcpu), vcpu, int(next_seq))
            case _:
                pass

    def _uid(self, vcpu: str) -> str:
        host = self._host_of["/".join(vcpu.split("/")[:2])]
        return f"{vcpu}@{self._lives[host]}" if host in self._ephemeral else vcpu

    def _opened(self, reply: Record, invoke: Record) -> None:
        """An epoch is higher than those of calls that had ended before this one began, and nobody else's."""
        found = _EPOCH.fullmatch(reply["value"])
        assert found is not None, reply
        host = self._host_of[reply["process"]]
        key, epoch = (host, self._lives[host]), int(found[1])
        before = invoke["before"].get(key, 0)
        if epoch <= before:
            self.fail("epochs-rise", f"{host} hands out epoch {epoch} after {before}")
        if (*key, epoch) in self._handed_out:
            self.fail("epochs-rise", f"{host} hands out epoch {epoch} twice")
        self._handed_out.add((*key, epoch))
        self._epochs[key] = max(epoch, self._epochs.get(key, 0))
        if found[2] and host not in self._ephemeral:
            for index, next_seq in enumerate(found[2].split(", ")):
                vcpu = f"{reply['process']}/vcpus/{index}"
                self._remembers(self._uid(vcpu), vcpu, int(next_seq))

    def _remembers(self, uid: str, vcpu: str, next_seq: int) -> None:
        """What the host says that it has taken; an event may be in there whose answer was lost."""
        heard = self._books.heard.get(uid, 0)
        if next_seq <= heard:
            text = f"{vcpu} expects event {next_seq}, and event {heard} was acknowledged"
            self.fail("acknowledged-is-there", text)
        where = self._host_of[vcpu.partition("/vcpus/")[0]], uid
        self._books.taken[where] = max(next_seq - 1, self._books.taken.get(where, 0))

    def _outcome(self, vcpu: str, seq: int, said: str, *, taken: bool) -> None:
        uid, host = self._uid(vcpu), self._host_of[vcpu.partition("/vcpus/")[0]]
        if taken and not said.startswith("blocked") and seq > self._books.taken.get((host, uid), 0):
            self._books.event_taken((host, uid), vcpu, seq, seq)
        if said.startswith(_OPEN):
            return
        self._books.outcome_heard(uid, vcpu, seq, said)
        if said.startswith("rejected "):
            self._books.disturbed.add(vcpu)
            self._rejected(vcpu, seq, said.removeprefix("rejected "))

    def _rejected(self, vcpu: str, seq: int, reason: str) -> None:
        if reason in (_INTERNAL, "VCPU_BROKEN"):
            self.fail("invariants", f"{vcpu}: event {seq} found the host wrong about itself")
        if reason not in _NO_MISTAKE and self._is_scripted(vcpu):
            self.fail("guest-sees-its-bytes", f"{vcpu}: event {seq} is rejected: {reason}")

    def _is_scripted(self, vcpu: str) -> bool:
        row = next((each for each in self._plan.workload.guests if matches(each.vcpu or "*", vcpu)), None)
        return row is not None and row.WhichOneof("play") != "random"

    # -- exits ---------------------------------------------------------------------------------------------------------

    def _exit(self, record: Record) -> None:
        name, generation, state = record["exit"], record["generation"], record["state"]
        key = (self._uid(name.partition("/exits/")[0]), name)
        was = self._books.exits.get(key)
        self._books.exit_is(key, name, generation, state)
        kind = record["decision"]
        if kind is None:
            return
        self._books.exit_decided(name, kind)
        # What is open again after a decision is of the next generation, and what was decided of the one before.
        about = generation - 1 if state in ("open", "paused") else generation
        if self._books.decided.get((*key, about)) == kind:
            return
        if was is not None and was[1] in ENDED:
            self.fail("no-decision-after-end", f"{name}: {kind} after it was {was[1]}")
        self._books.decision_applied(key, name, about, kind)

    # -- guests --------------------------------------------------------------------------------------------------------

    def _guest(self, record: Record) -> None:
        match record["state"]:
            case "gives up":
                if is_the_end(record):
                    self.fail("invariants", f"{record['node']} hears: {record['why'].partition(': ')[2]}")
            case "lost its session":
                if self._host_of[record["node"]] not in self._ephemeral:
                    self.fail("session-goes-on", record["why"])
            case state:
                self._endings[record["vcpu"]] = state
                self._books.guest_ended(record["vcpu"], state, record.get("why", ""))

    # -- the end -------------------------------------------------------------------------------------------------------

    def failures(self) -> None:
        """Each growth that failed has opened an exit, or has brought one a new generation."""
        opened: Counter[str] = Counter()
        for (uid, _), (generation, _) in self._books.exits.items():
            opened[uid.partition("@")[0]] += generation
        for vcpu, count in self._failures.items():
            if count > opened[vcpu]:
                text = f"{vcpu}: {count} growths failed, and its exits have {opened[vcpu]} generations"
                self.fail("one-exit-a-failure", text)

    def eventually(self, wanted: Collection[str], unfinished: Iterable[str]) -> None:
        """After everything is mended and has had its time: nothing is left hanging."""
        checks = {"no-stuck-exit": self.stuck(), "guests-end": self._unended(unfinished)}
        for name in set(wanted).intersection(checks) if wanted else checks:
            for text in checks[name]:
                raise Violation(name, text)

    def stuck(self) -> Iterator[str]:
        """Exits that are open, unless they are paused for a person."""
        for (_, name), (generation, state) in self._books.exits.items():
            if state not in ENDED and state != "paused":
                yield f"{name} is {state} at generation {generation}"

    def paused(self) -> set[str]:
        """The vCPUs that wait for a person."""
        return {
            name.partition("/exits/")[0] for (_, name), (_, state) in self._books.exits.items() if state == "paused"
        }

    def _unended(self, unfinished: Iterable[str]) -> Iterator[str]:
        paused = self.paused()
        for vcpu in unfinished:
            if vcpu not in paused:
                yield f"{vcpu} has not come to its end"


def read(line: str) -> Record:
    """A line of a history."""
    record: Record = json.loads(line)
    return record
