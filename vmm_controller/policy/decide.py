"""`decide`: the one function that turns an exit into a decision, and the default policy.

Whatever a policy is made of, what comes out is among the exit's allowed decisions: where a policy declines, PAUSE,
which loses nothing; where not even that is allowed, nothing, and the exit's deadline brings the host's default action.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vmm_controller.policy.backoff import Draw
from vmm_controller.policy.decision import Decision, InjectGp, KillVm, Pause
from vmm_controller.policy.exit_view import ExitCause, ExitHistory, ExitView
from vmm_controller.policy.rules import (
    Always,
    ByCause,
    Case,
    Chain,
    Leave,
    Policy,
    ReclaimPolicy,
    RetryAfterPolicy,
)


def decide(policy: Policy, exit_view: ExitView, history: ExitHistory, draw: Draw) -> Decision | None:
    """Return a decision that `exit_view` allows, or None to leave the exit to its deadline.

    PAUSE stands at the end of every policy.
    """
    case = Case(exit=exit_view, attempt=exit_view.attempt, history=history, draw=draw)
    choice = Chain((policy, Always(Pause()))).choose(case)
    if choice is None or isinstance(choice, Leave):
        return None
    assert case.allows(choice.kind), f"{policy} chose {choice}, which {exit_view.name} does not allow"
    return choice


def default_policy(retry_after: RetryAfterPolicy | None = None) -> Policy:
    """Return what is reasonable without any wish.

    - no permission, or a host without the feature: #GP; the VMM or the guest asked for what it cannot have.
    - no memory, or a byte limit: RETRY_AFTER (`retry_after`, 5 tries unless given), RECLAIM once, then PAUSE; the guest
      is innocent, and #GP at boot would panic it.
    - the host found itself wrong: KILL_VM; its state is not to be trusted.
    - anything else: PAUSE, never a guess.
    """
    wait_for_memory = Chain((retry_after or RetryAfterPolicy(), ReclaimPolicy(), Always(Pause())))
    refuse = Always(InjectGp())
    return ByCause(
        {
            ExitCause.NO_PERMISSION: refuse,
            ExitCause.HOST_UNSUPPORTED: refuse,
            ExitCause.NO_MEMORY: wait_for_memory,
            ExitCause.QUOTA: wait_for_memory,
            ExitCause.INTERNAL: Always(KillVm()),
        }
    )


@dataclass(frozen=True, slots=True)
class PolicyBook:
    """Which policy answers for which VM: `per_vm` by `vms/{vm}`, and `otherwise` for the rest."""

    otherwise: Policy = field(default_factory=default_policy)
    per_vm: dict[str, Policy] = field(default_factory=dict)

    def policy_for(self, vm: str) -> Policy:
        """Return the policy of a VM."""
        return self.per_vm.get(vm, self.otherwise)

    def decide(self, exit_view: ExitView, history: ExitHistory, draw: Draw) -> Decision | None:
        """As `decide`, with the policy of the exit's VM."""
        return decide(self.policy_for(exit_view.vm), exit_view, history, draw)
