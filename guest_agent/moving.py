"""A VM that moves to another host, as its agents hear of it: in an outcome, in a directive, or as a refusal.

A session goes with its VM if it is of one VM alone: it is opened again at the target, and every event goes on there
under its number. A session over several VMs stays, and what has moved is `Gone` for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from guest_agent.outcome import Blocked, DirectiveKind, Gone, Outcome, Refusal

#: How often an event is offered to a host whose VM is about to leave, in seconds.
BLOCKED_PAUSE_S = 0.05
#: Hosts that a session is sent on to, one by the other, before it gives up.
HOPS_MAX = 8


def goes_with_its_vm(vcpus: Iterable[str]) -> bool:
    """Whether a session over these vCPUs can follow its VM."""
    return len({vcpu.partition("/vcpus/")[0] for vcpu in vcpus}) == 1


def moved_to(outcome: Outcome) -> str:
    """Where the VM of an event is now; empty where the outcome does not say that it has moved."""
    if isinstance(outcome, Gone) and outcome.directive.kind is DirectiveKind.MOVED:
        return outcome.directive.target
    return ""


def refusal_in(outcome: Outcome) -> Refusal | None:
    """What an outcome says of a VM that moves, as the refusal of a call that is made again; None for any other."""
    target = moved_to(outcome)
    if target:
        text = f"the VM lives at {target} now"
        return Refusal("FAILED_PRECONDITION", text, "VM_MOVED", {"target": target})
    if isinstance(outcome, Blocked) and outcome.migration:
        text = f"the VM is leaving: {outcome.migration}"
        metadata = {"migration": outcome.migration}
        return Refusal("ABORTED", text, "MIGRATION_IN_PROGRESS", metadata, retry_delay_s=BLOCKED_PAUSE_S)
    return None
