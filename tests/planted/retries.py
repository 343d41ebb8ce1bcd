"""Bugs of an exit's own time: delays, deadlines, pauses, attempts."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Patch
from tests.planted.bug import Bug

BUGS: Final = (
    Bug(
        id="lost-park",
        title="The time at which a RETRY_AFTER is to try again is forgotten: the vCPU stays parked for ever",
        checks=frozenset({"no-stuck-exit", "deadline-kept"}),
        plan="decisions",
        patches=(Patch("host_agent.decisions", "    record.retry_ns = state.now_ns + decision.delay_ns\n", ""),),
    ),
    Bug(
        id="retry-at-once",
        title="A RETRY_AFTER does not wait",
        checks=frozenset({"deadline-kept"}),
        plan="decisions",
        patches=(
            Patch(
                "host_agent.decisions",
                "    record.retry_ns = state.now_ns + decision.delay_ns\n",
                "    record.retry_ns = state.now_ns\n",
            ),
        ),
    ),
    Bug(
        id="retry-livelock",
        title="A retry is not counted: the controller sees the first attempt each time, and never gives up",
        checks=frozenset({"attempts-are-decided", "retries-end"}),
        plan="decisions",
        patches=(Patch("host_agent.decisions", "    record.attempt += 1\n", ""),),
    ),
    Bug(
        id="policy-never-gives-up",
        title="A policy does not count its tries: RETRY for as long as there is no memory",
        checks=frozenset({"retries-end"}),
        plan="shortage",
        patches=(
            Patch(
                "vmm_controller.policy.rules",
                "mine = case.allows(self.kind) and case.attempt <= self.tries",
                "mine = case.allows(self.kind)",
            ),
        ),
    ),
    Bug(
        id="retry-forgets-the-write",
        title="The retry enters the guest and forgets the instruction that was to execute again",
        checks=frozenset({"decision-is-done"}),
        plan="decisions",
        patches=(
            Patch(
                "host_agent.decisions",
                "    result = enter_again(state, vcpu, record.write)\n",
                "    enter_again(state, vcpu, None)\n    result = Done()\n",
            ),
        ),
    ),
    Bug(
        id="second-retry-forgotten",
        title="Of an exit that fails again the retry is forgotten, and nobody decides any more",
        checks=frozenset({"no-stuck-exit", "attempts-are-decided"}),
        plan="shortage",
        patches=(
            Patch(
                "host_agent.decisions",
                "    record.retry_ns = None\n    record.attempt += 1\n",
                "    if record.generation > 1:\n"
                "        record.state, record.expires_ns = ExitState.APPLYING, None\n"
                "        changed(state, record)\n"
                "        return\n"
                "    record.retry_ns = None\n    record.attempt += 1\n",
            ),
        ),
    ),
    Bug(
        id="deadline-ignored",
        title="A deadline passes and nothing happens: an exit that nobody decides about stays open",
        checks=frozenset({"deadline-kept", "no-stuck-exit"}),
        plan="silence",
        patches=(
            Patch(
                "host_agent.timers",
                "    elif record.state is ExitState.OPEN and record.expires_ns is not None",
                "    elif record.state is ExitState.PAUSED and record.expires_ns is not None",
            ),
        ),
    ),
    Bug(
        id="deadline-not-renewed",
        title="A new generation keeps the deadline of the first, and is decided about by default too soon",
        checks=frozenset({"deadline-kept"}),
        plan="silence",
        patches=(
            Patch(
                "host_agent.decisions",
                "    record.expires_ns = state.now_ns + state.config.exit_deadline_ns\n",
                "    record.expires_ns = record.expires_ns or state.now_ns + state.config.exit_deadline_ns // 2\n",
            ),
        ),
    ),
    Bug(
        id="deadline-during-delay",
        title="The deadline runs on while a RETRY_AFTER waits, and pauses a vCPU that was decided about",
        checks=frozenset({"deadline-kept", "attempts-are-decided"}),
        plan="silence",
        patches=(
            Patch(
                "host_agent.decisions",
                "    record.retry_ns = state.now_ns + decision.delay_ns\n    record.expires_ns = None\n",
                "    record.retry_ns = state.now_ns + decision.delay_ns\n",
            ),
            Patch(
                "host_agent.timers",
                "    if record.retry_ns is not None and record.retry_ns <= state.now_ns:\n"
                "        delay_passed(state, record)\n"
                "    elif record.state is ExitState.OPEN and record.expires_ns",
                "    if record.retry_ns is not None and record.retry_ns <= state.now_ns:\n"
                "        delay_passed(state, record)\n"
                "    elif record.state is not ExitState.PAUSED and record.expires_ns",
            ),
            Patch(
                "host_agent.exits",
                "        return self.retry_ns if self.retry_ns is not None else self.expires_ns\n",
                "        times = [each for each in (self.retry_ns, self.expires_ns) if each is not None]\n"
                "        return min(times, default=None)\n",
            ),
        ),
    ),
    Bug(
        id="pause-resumes",
        title="A paused vCPU tries again when the deadline passes, though nobody has said so",
        checks=frozenset({"attempts-are-decided"}),
        plan="silence",
        patches=(
            Patch(
                "host_agent.decisions",
                "    next_generation(state, vcpu, record, ExitState.PAUSED)\n    record.expires_ns = None\n",
                "    record.retry_ns = state.now_ns + state.config.exit_deadline_ns\n"
                "    next_generation(state, vcpu, record, ExitState.PAUSED)\n    record.expires_ns = None\n",
            ),
        ),
    ),
    Bug(
        id="retry-forgotten-at-restart",
        title="A host that comes back has lost the times of its RETRY_AFTERs",
        checks=frozenset({"deadline-kept", "no-stuck-exit", "invariants"}),
        plan="restarts",
        patches=(
            Patch(
                "host_agent.boot",
                "    state.draining = False\n",
                "    state.draining = False\n"
                "    for record in state.exits.values():\n"
                "        record.retry_ns = None\n"
                "    state.index_deadlines()\n",
            ),
        ),
    ),
)
