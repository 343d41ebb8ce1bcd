"""Why a wait for an outcome ended without one. None of them is a host's refusal; for those see `guest_agent.error`."""

from __future__ import annotations


class EventBlocked(Exception):  # noqa: N818 -- the wire's word for this outcome
    """An event that the host did not look at, as another one comes first: this agent's numbers are not the host's.

    `expected_seq` is the number that the host expects; `exit` is where the vCPU is parked, empty for a gap.
    """

    def __init__(self, vcpu: str, seq: int, expected_seq: int, exit_name: str) -> None:
        why = f"it is parked on {exit_name}" if exit_name else "an earlier event is missing"
        super().__init__(f"{vcpu} expects event {expected_seq}, not {seq}: {why}")
        self.vcpu = vcpu
        self.seq = seq
        self.expected_seq = expected_seq
        self.exit = exit_name


class StillPending(Exception):  # noqa: N818 -- a state of the vCPU, and the caller's to wait for
    """An event is still without its final outcome, so the next one can not be sent: `wait_pending` first."""


class SessionLost(Exception):  # noqa: N818 -- what has happened, in the contract's words
    """The session can not go on: the host, or another agent, is at another point of a vCPU's events than this one."""


class Interrupted(Exception):  # noqa: N818 -- EINTR, as KVM_RUN has it: no error
    """Somebody called `interrupt`: the wait was abandoned. The event stays, and `wait_pending` waits for it again."""
