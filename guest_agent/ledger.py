"""The numbers of one vCPU's events, on the agent's side: which comes next, which wait, what was received.

Pure, and the same for the blocking port and the stream. The rules, which make every event happen exactly once:

    take(event)      the next number; the event is kept until its outcome is final, so that it can be sent again
    note(seq, ...)   an outcome came: pending keeps the event, final drops it
    resume(next_seq) a new session says where the host stands: every kept event is sent again under its own number

`received_through` is what the host may forget: every outcome up to it is final and here.
"""

from __future__ import annotations

from guest_agent.event import GuestEvent
from guest_agent.outcome import Blocked, Outcome, Pending
from guest_agent.wait import SessionLost


class SeqLedger:
    """Numbers of the events of one vCPU, from `next_seq` on (from 1).

    `pending_seq` is an event of an earlier session of this vCPU that still waits for its outcome: it counts as under
    way, though this agent does not know what it was.
    """

    def __init__(self, vcpu: str, *, next_seq: int = 1, pending_seq: int | None = None) -> None:
        self.vcpu = vcpu
        self.next_seq = next_seq
        #: In ascending order, since numbers are taken so.
        self._waiting: dict[int, GuestEvent | None] = {} if pending_seq is None else {pending_seq: None}
        self._pending: dict[int, Pending] = {}

    @property
    def under_way(self) -> tuple[int, ...]:
        """Numbers of the events without a final outcome, ascending."""
        return tuple(self._waiting)

    @property
    def received_through(self) -> int:
        """The number up to which every final outcome has been received; 0 for none."""
        return next(iter(self._waiting), self.next_seq) - 1

    @property
    def parked(self) -> bool:
        """Whether an event is known to be pending on an exit, so that nothing but an INIT is looked at."""
        return bool(self._pending)

    def take(self, event: GuestEvent) -> int:
        """Give `event` the next number and keep it until its outcome is final."""
        seq = self.next_seq
        self._waiting[seq] = event
        self.next_seq += 1
        return seq

    def event(self, seq: int) -> GuestEvent | None:
        """Return the event of a number that is under way; None if an earlier agent sent it."""
        return self._waiting[seq]

    def pending(self, seq: int) -> Pending:
        """Return on which exit event `seq` waits; on the exit `""` where nobody has said yet."""
        return self._pending.get(seq, Pending())

    def note(self, seq: int, outcome: Outcome) -> bool:
        """Take an outcome in; True if it is the final one of an event under way, and news."""
        if seq not in self._waiting:
            return False
        if isinstance(outcome, Blocked):
            return False
        if isinstance(outcome, Pending):
            self._pending[seq] = outcome
            return False
        del self._waiting[seq]
        self._pending.pop(seq, None)
        return True

    def untake(self, seq: int) -> None:
        """Take back event `seq` and all after it, which the host did not look at: their numbers are free again."""
        for each in [each for each in list(self._waiting) if each >= seq]:
            del self._waiting[each]
            self._pending.pop(each, None)
        self.next_seq = min(self.next_seq, seq)

    def resume(self, next_seq: int) -> None:
        """Check where a new session of the host goes on: on an event under way, or just behind the last.

        Raises:
            SessionLost: the host has forgotten events, or taken some that are not this agent's.
        """
        if next_seq != self.next_seq and next_seq not in self._waiting:
            raise SessionLost(
                f"{self.vcpu}: the host goes on at event {next_seq}, this agent at {self.next_seq}"
                f" with {list(self.under_way)} under way"
            )
