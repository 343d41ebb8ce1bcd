"""What a decision does. The first of a generation wins; the winner's answer is given to whoever repeats it.

A retry is a new KVM_RUN in which the instruction executes again and requests again. Whatever is not final leaves the
exit open with the next generation.
"""

from __future__ import annotations

from collections.abc import Callable

from fpu_core.alloc import Account
from fpu_core.cpu import Vector
from fpu_core.errors import CoreBug
from host_agent.audit import DEADLINE, Decider
from host_agent.broken import break_vcpu
from host_agent.commands import ResolveExit
from host_agent.control import check_may_decide, holder
from host_agent.decision_rules import allowed_decisions, why_not
from host_agent.directives import finish_pending, issue_directive
from host_agent.effects import OutcomeReady
from host_agent.errors import Reason, Refused, invalid
from host_agent.events import DoneOutcome, InjectOutcome, Outcome, PendingOutcome
from host_agent.exit_desk import changed, close_exit
from host_agent.exits import Decision, DecisionKind, ExitRecord, ExitResult, ExitState
from host_agent.guest_events import done_outcome, enter_again
from host_agent.kvm.lifecycle import VcpuEvent, VcpuState
from host_agent.kvm.outcome import Done, ReallocExit, Trigger
from host_agent.kvm.vcpu import Vcpu
from host_agent.leaving import begin_leaving
from host_agent.reclaim import VICTIMS_MAX, reclaim
from host_agent.state import HostState
from host_agent.vcpus import stop_vcpu
from host_agent.vm_export import check_exportable
from host_agent.vms import reset_vcpus

_MAX_DELAY_NS = 3600 * 1_000_000_000
#: Generations of an exit whose winner is remembered; who repeats an older decision hears that it is stale.
_MAX_WINNERS = 256
#: The guest event that a retry does again.
_EVENTS = {Trigger.XSETBV: "Xsetbv", Trigger.WRMSR_XFD: "Wrmsr"}


def resolve_exit(state: HostState, command: ResolveExit) -> ExitRecord:
    """Compare-and-swap on (exit, generation, control epoch)."""
    record = state.exits.get(command.exit) or state.resolved_exits.get(command.exit)
    if record is None:
        raise Refused(Reason.EXIT_NOT_FOUND, f"there is no exit {command.exit!r}", exit=command.exit)
    winner = record.winners.get(command.generation)
    if winner is not None:
        return _already_decided(record, command, winner)
    check_may_decide(state, command.control, command.control_epoch, record)
    if not record.open:
        raise Refused(
            Reason.EXIT_ALREADY_RESOLVED,
            f"exit {record.name!r} is {record.state.value}",
            exit=record.name,
            generation=command.generation,
            decidedBy=record.decided_by,
            decision=record.decision.name if record.decision else "",
            result=record.result.name if record.result else record.state.name,
        )
    if command.generation != record.generation:
        raise Refused(
            Reason.EXIT_STALE_GENERATION,
            f"exit {record.name!r} is at generation {record.generation}, not {command.generation}",
            exit=record.name,
            generation=command.generation,
            currentGeneration=record.generation,
        )
    _check_decision(state, record, command.decision)
    name = command.decided_by or state.controls[command.control].controller
    who = Decider(name=name, principal=command.principal, reason=command.reason)
    apply_decision(state, record, command.decision, who, command.request_id)
    return record


def _already_decided(record: ExitRecord, command: ResolveExit, winner: tuple[str, Decision, str]) -> ExitRecord:
    """The same decision again is answered with the exit as it is; another is refused and hears who won."""
    who, decision, request_id = winner
    if decision == command.decision and request_id == command.request_id:
        return record
    raise Refused(
        Reason.EXIT_ALREADY_RESOLVED,
        f"generation {command.generation} of {record.name!r} was decided by {who!r}: {decision.kind.name}",
        exit=record.name,
        generation=command.generation,
        decidedBy=who,
        decision=decision.kind.name,
        result=record.result.name if record.result else record.state.name,
    )


def _check_decision(state: HostState, record: ExitRecord, decision: Decision) -> None:
    why = why_not(decision.kind, record.cause, armed=record.armed)
    if why:
        allowed = ", ".join(sorted(kind.name for kind in allowed_decisions(record)))
        kind, trigger = decision.kind.name, record.write.trigger.value
        text = f"{kind} is not for {record.cause.value} on {trigger}: {why}; allowed: {allowed}"
        raise Refused(Reason.DECISION_NOT_ALLOWED, text, exit=record.name, decision=kind, allowed=allowed)
    match decision.kind:
        case DecisionKind.RETRY_AFTER if not 0 <= decision.delay_ns <= _MAX_DELAY_NS:
            raise invalid("decision.retry_after.delay", "0 s to 3,600 s", f"{decision.delay_ns} ns")
        case DecisionKind.RAISE_LIMIT:
            _check_limit(state, record, decision)
        case DecisionKind.RECLAIM if not decision.victims and not decision.any_victim:
            raise invalid("decision.reclaim", "victims, or any", "neither")
        case DecisionKind.RECLAIM if len(decision.victims) > VICTIMS_MAX:
            raise invalid("decision.reclaim.victims", f"at most {VICTIMS_MAX}", len(decision.victims))
        case DecisionKind.MIGRATE if not decision.target:
            raise invalid("decision.migrate.target", "a gRPC target", decision.target)
        case DecisionKind.MIGRATE:
            check_exportable(state, state.vms[record.vm], stopping=True)
        case _:
            pass


def _check_limit(state: HostState, record: ExitRecord, decision: Decision) -> None:
    """The host's limit is the host's holder's to raise, and a limit only goes up."""
    limit = _account(state, record, decision).limit_bytes
    own = holder(state, record.vm)
    if decision.scope == "host" and own is not None:
        text = f"the control of {record.vm} does not cover the host's limit"
        raise Refused(Reason.CONTROL_OUT_OF_SCOPE, text, exit=record.name, scope=own.scope, holder=own.controller)
    if limit is None or decision.bytes <= limit:
        now = "no limit to raise" if limit is None else f"more than the {limit} bytes it is"
        raise invalid("decision.raise_limit.bytes", f"{decision.scope} scope: {now}", decision.bytes)


def apply_decision(
    state: HostState, record: ExitRecord, decision: Decision, who: Decider, request_id: str = ""
) -> None:
    """Carry a decision out, which wins its generation. The default action of a deadline comes in here too."""
    record.winners[record.generation] = (who.name, decision, request_id)
    if len(record.winners) > _MAX_WINNERS:
        del record.winners[next(iter(record.winners))]
    record.decision, record.decided_by = decision.kind, who.name
    unix_ns = state.now_ns + state.config.unix_offset_ns
    state.audit.take(record, decision, who, revision=state.revision, at_ns=state.now_ns, unix_ns=unix_ns)
    state.audit.forget(state.config.max_decisions)
    vcpu = state.vcpu(record.vcpu)
    if record.state is ExitState.PAUSED and decision.kind not in _GO_NOWHERE:
        issue_directive(state, vcpu, "RESUME", f"{decision.kind.name} by {who.name}")
        vcpu.move(VcpuEvent.RESUME)
    _carry_out(state, vcpu, record, decision)


def _carry_out(state: HostState, vcpu: Vcpu, record: ExitRecord, decision: Decision) -> None:
    """A bug of ours on the way stops this vCPU, and nobody else."""
    state.act_for(record.vm, record.vcpu, _EVENTS[record.write.trigger])
    try:
        _EFFECTS[decision.kind](state, vcpu, record, decision)
    except CoreBug as bug:
        break_vcpu(state, vcpu, bug)


def delay_passed(state: HostState, record: ExitRecord) -> None:
    """The delay of a RETRY_AFTER is over."""
    _carry_out(state, state.vcpu(record.vcpu), record, Decision(DecisionKind.RETRY))


def _retry(state: HostState, vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
    """KVM_RUN again: the instruction executes anew, requests anew, and this time grows or fails anew."""
    record.retry_ns = None
    record.attempt += 1
    result = enter_again(state, vcpu, record.write)
    if isinstance(result, ReallocExit):
        record.failed_again(result)
        next_generation(state, vcpu, record, ExitState.OPEN)
        return
    _settle(state, vcpu, record, ExitResult.COMMITTED, done_outcome(vcpu, result))


def _retry_after(state: HostState, _vcpu: Vcpu, record: ExitRecord, decision: Decision) -> None:
    """The retry happens by itself when the delay is over; until then the exit takes no other decision."""
    record.state = ExitState.APPLYING
    record.retry_ns = state.now_ns + decision.delay_ns
    record.expires_ns = None
    changed(state, record)


def _raise_limit(state: HostState, vcpu: Vcpu, record: ExitRecord, decision: Decision) -> None:
    """Set the limit of the VM, or of the host, and try again."""
    _account(state, record, decision).set_limit(decision.bytes)
    _retry(state, vcpu, record, decision)


def _reclaim(state: HostState, vcpu: Vcpu, record: ExitRecord, decision: Decision) -> None:
    """Shrink containers of others, and try again."""
    record.reclaimed = reclaim(state, record, decision)
    _retry(state, vcpu, record, decision)


def _account(state: HostState, record: ExitRecord, decision: Decision) -> Account:
    """The account whose limit a RAISE_LIMIT is about."""
    match decision.scope:
        case "vm":
            return state.vms[record.vm].kvm.account
        case "host":
            return state.allocator.host
        case _:
            raise invalid("decision.raise_limit.scope", "vm or host", decision.scope)


def _inject_gp(state: HostState, vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
    """The guest takes #GP(0) at the instruction; nothing was committed, nothing is skipped."""
    enter_again(state, vcpu, None)
    _settle(state, vcpu, record, ExitResult.INJECTED_GP, InjectOutcome(Vector.GP, 0, vcpu.guest.xfd_err))


def _hide_feature(state: HostState, vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
    """The same for this instruction; what the guest asked for is not in its CPUID after the VM's next reset."""
    vm = state.vms[record.vm]
    vm.hidden_at_reset |= record.xfeatures
    vm.revision = state.revision
    enter_again(state, vcpu, None)
    _settle(state, vcpu, record, ExitResult.FEATURE_HIDDEN, InjectOutcome(Vector.GP, 0, vcpu.guest.xfd_err))


def _inject_nm(state: HostState, vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
    """The guest takes the #NM of the feature that XFD disables; nothing was committed, nothing is skipped."""
    enter_again(state, vcpu, None)
    vcpu.guest.xfd_err = record.xfeatures & vcpu.fpstate.xfd
    _settle(state, vcpu, record, ExitResult.INJECTED_NM, InjectOutcome(Vector.NM, None, vcpu.guest.xfd_err))


def _defer(state: HostState, vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
    """Skip the XFD write without committing it: the feature stays armed, and its next use raises #NM again."""
    enter_again(state, vcpu, None)
    _settle(state, vcpu, record, ExitResult.DEFERRED, done_outcome(vcpu, Done()))


def _pause(state: HostState, vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
    """The vCPU waits, and nobody decides by default any more. Its VMM is told once."""
    if vcpu.state is not VcpuState.PAUSED:
        issue_directive(state, vcpu, "PAUSE", f"by {record.decided_by}")
    vcpu.move(VcpuEvent.PAUSE)
    next_generation(state, vcpu, record, ExitState.PAUSED)
    record.expires_ns = None


def _kill_vcpu(state: HostState, vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
    _resolve(state, vcpu, record, ExitResult.VCPU_KILLED)
    stop_vcpu(state, vcpu, f"killed by {record.decided_by}", ExitResult.VCPU_KILLED)


def _kill_vm(state: HostState, vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
    """Every vCPU of the VM stops; the VM's other exits are cancelled."""
    _resolve(state, vcpu, record, ExitResult.VM_KILLED)
    for each in state.vms[record.vm].kvm.vcpus.values():
        if each.state is not VcpuState.KILLED:
            stop_vcpu(state, each, f"the VM was killed by {record.decided_by}", ExitResult.VM_KILLED)


def _reset_vm(state: HostState, vcpu: Vcpu, record: ExitRecord, _decision: Decision) -> None:
    why = f"the VM was reset by {record.decided_by}"
    _resolve(state, vcpu, record, ExitResult.VM_RESET)
    reset_vcpus(state, state.vms[record.vm], why)


def _migrate(state: HostState, _vcpu: Vcpu, record: ExitRecord, decision: Decision) -> None:
    """The VM stands still until somebody has moved it; the exit stays, and its instruction executes again there."""
    record.state = ExitState.APPLYING
    record.expires_ns = record.retry_ns = None
    begin_leaving(state, state.vms[record.vm], decision.target)
    changed(state, record)


_EFFECTS: dict[DecisionKind, Callable[[HostState, Vcpu, ExitRecord, Decision], None]] = {
    DecisionKind.RETRY: _retry,
    DecisionKind.RETRY_AFTER: _retry_after,
    DecisionKind.RAISE_LIMIT: _raise_limit,
    DecisionKind.RECLAIM: _reclaim,
    DecisionKind.INJECT_GP: _inject_gp,
    DecisionKind.INJECT_NM: _inject_nm,
    DecisionKind.DEFER: _defer,
    DecisionKind.PAUSE: _pause,
    DecisionKind.KILL_VCPU: _kill_vcpu,
    DecisionKind.KILL_VM: _kill_vm,
    DecisionKind.RESET_VM: _reset_vm,
    DecisionKind.HIDE_FEATURE: _hide_feature,
    DecisionKind.MIGRATE: _migrate,
}
#: What a paused vCPU does not go on with: its VMM stays told to wait, or hears something stronger.
_GO_NOWHERE = frozenset({DecisionKind.PAUSE, DecisionKind.KILL_VCPU, DecisionKind.KILL_VM, DecisionKind.RESET_VM})


def deadline_passed(state: HostState, record: ExitRecord) -> None:
    """No decision came: what the host was told to do then, which is to pause unless it was told otherwise."""
    apply_decision(state, record, Decision(state.config.exit_default), DEADLINE)


def next_generation(state: HostState, vcpu: Vcpu, record: ExitRecord, now: ExitState) -> None:
    """The exit stays, and wants another decision."""
    record.generation += 1
    record.state = now
    record.expires_ns = state.now_ns + state.config.exit_deadline_ns
    side = state.side(vcpu)
    pending = Outcome(record.vcpu, record.seq, PendingOutcome(record.name, record.generation))
    side.outcomes[record.seq] = pending
    state.effects.append(OutcomeReady(pending))
    changed(state, record)


def _resolve(state: HostState, vcpu: Vcpu, record: ExitRecord, result: ExitResult) -> None:
    record.result = result
    close_exit(state, vcpu, record, ExitState.RESOLVED)


def _settle(
    state: HostState, vcpu: Vcpu, record: ExitRecord, result: ExitResult, kind: DoneOutcome | InjectOutcome
) -> None:
    _resolve(state, vcpu, record, result)
    finish_pending(state, vcpu, kind)
