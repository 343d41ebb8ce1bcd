"""Bugs of what a decision does, and of whose counts."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Patch
from tests.planted.bug import Bug

BUGS: Final = (
    Bug(
        id="double-decision",
        title="The winner of a generation is not looked up: while a delay runs, a second decision is applied as well",
        checks=frozenset({"one-decision-a-generation", "attempts-are-decided", "deadline-kept", "invariants"}),
        plan="decisions",
        patches=(
            Patch("host_agent.decisions", "winner = record.winners.get(command.generation)\n", "winner = None\n"),
        ),
    ),
    Bug(
        id="older-generation",
        title="A decision for a generation that is over is applied to the one that the exit is at now",
        checks=frozenset({"one-decision-a-generation", "deadline-kept"}),
        plan="decisions",
        patches=(
            Patch("host_agent.decisions", "winner = record.winners.get(command.generation)\n", "winner = None\n"),
            Patch(
                "host_agent.decisions",
                "    if command.generation != record.generation:\n",
                "    if command.generation > record.generation:\n",
            ),
        ),
    ),
    Bug(
        id="decided-after-end",
        title="A decision for an exit that has been resolved is applied once more",
        checks=frozenset(
            {"no-decision-after-end", "one-decision-a-generation", "invariants", "deadline-kept", "decision-is-done"}
        ),
        plan="decisions",
        patches=(
            Patch("host_agent.decisions", "winner = record.winners.get(command.generation)\n", "winner = None\n"),
            Patch("host_agent.decisions", "    if not record.open:\n", "    if record.state is ExitState.CANCELLED:\n"),
        ),
    ),
    Bug(
        id="gp-and-commit",
        title="INJECT_GP executes the write before it injects: the guest takes #GP at a write that has happened",
        checks=frozenset({"decision-is-done", "invariants"}),
        plan="decisions",
        patches=(
            Patch(
                "host_agent.decisions",
                "    enter_again(state, vcpu, None)\n    _settle(state, vcpu, record, ExitResult.INJECTED_GP,",
                "    enter_again(state, vcpu, record.write)\n    _settle(state, vcpu, record, ExitResult.INJECTED_GP,",
            ),
        ),
    ),
    Bug(
        id="defer-commits",
        title="DEFER writes the XFD that it is to leave alone",
        checks=frozenset({"decision-is-done", "invariants"}),
        plan="decisions",
        patches=(
            Patch(
                "host_agent.decisions",
                "    enter_again(state, vcpu, None)\n    _settle(state, vcpu, record, ExitResult.DEFERRED,",
                "    vcpu.fpstate.xfd = record.write.xfd\n"
                "    enter_again(state, vcpu, None)\n"
                "    _settle(state, vcpu, record, ExitResult.DEFERRED,",
            ),
        ),
    ),
    Bug(
        id="lost-gp",
        title="INJECT_GP lets the guest go on behind its instruction, as if the write had been done",
        checks=frozenset({"decision-is-done"}),
        plan="decisions",
        patches=(
            Patch(
                "host_agent.decisions",
                "ExitResult.INJECTED_GP, InjectOutcome(Vector.GP, 0, vcpu.guest.xfd_err))",
                "ExitResult.INJECTED_GP, done_outcome(vcpu, Done()))",
            ),
        ),
    ),
    Bug(
        id="kill-spares-others",
        title="KILL_VM stops the vCPU that is parked, and forgets those that run",
        checks=frozenset({"decision-is-done"}),
        plan="links",
        patches=(
            Patch(
                "host_agent.decisions",
                '        if each.state is not VcpuState.KILLED:\n            stop_vcpu(state, each, f"the VM',
                "        if each.state in (VcpuState.PARKED, VcpuState.PAUSED):\n"
                '            stop_vcpu(state, each, f"the VM',
            ),
        ),
    ),
    Bug(
        id="eperm-is-enomem",
        title="A growth without permission is taken for one without memory, and tried again and again",
        checks=frozenset({"cause-is-told"}),
        plan="limits",
        patches=(
            Patch(
                "host_agent.exits",
                "return ExitCause.NO_PERMISSION, errno.EPERM",
                "return ExitCause.NO_MEMORY, errno.ENOMEM",
            ),
        ),
    ),
    Bug(
        id="cause-stands-still",
        title="An exit whose retry fails otherwise keeps saying what failed first",
        checks=frozenset({"cause-is-told"}),
        plan="decisions",
        patches=(Patch("host_agent.decisions", "        record.failed_again(result)\n", ""),),
    ),
    Bug(
        id="two-in-charge",
        title="The host's controller decides about a VM that has a controller of its own",
        checks=frozenset({"decider-in-charge"}),
        plan="controllers",
        patches=(
            Patch(
                "host_agent.control",
                'if control.scope not in ("", record.vm) or (own is not None and own is not control):',
                'if control.scope not in ("", record.vm):',
            ),
        ),
    ),
    Bug(
        id="older-control",
        title="Who takes a scope again leaves its earlier hold standing, and what comes late under that is carried out",
        checks=frozenset({"epochs-fence", "decider-in-charge"}),
        plan="controllers",
        patches=(
            Patch(
                "host_agent.control",
                "    if held is not None:\n        del state.controls[held.name]\n",
                "",
            ),
        ),
    ),
    Bug(
        id="exit-opened-twice",
        title="A growth that fails again opens its exit as new, at its first generation",
        checks=frozenset({"one-exit-a-failure", "invariants", "attempts-are-decided", "one-decision-a-generation"}),
        plan="decisions",
        patches=(Patch("host_agent.decisions", "    record.generation += 1\n", "    record.generation = 1\n"),),
    ),
)
