"""HostMachine: command in, reply and effects out. Everything the agent knows lives here, and nothing else changes it.

Deterministic: the same configuration and the same (time, command) records lead to the same digest, so a log of them is
the whole truth about a host. No clock, no chance, no input or output of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fpu_core.errors import CoreBug, FieldError
from fpu_core.invariants import check_core
from fpu_core.trace import CoreTracer
from host_agent import (
    arriving,
    boot,
    control,
    cpus,
    decisions,
    faults,
    leaving,
    migrating,
    sessions,
    signals,
    tasks,
    vcpu_state,
    vcpus,
    vms,
)
from host_agent import commands as c
from host_agent import migration_commands as m
from host_agent import task_commands as t
from host_agent.digest import digest
from host_agent.effects import Drained, Effect
from host_agent.errors import Reason, Refused, invalid
from host_agent.invariants import check_host
from host_agent.kvm.lifecycle import WrongStateError
from host_agent.repetition import fingerprint, method_of
from host_agent.state import HostConfig, HostState
from host_agent.timers import due, next_deadline_ns

#: The kernel's clock ticks every millisecond here (CONFIG_HZ=1000).
_NS_PER_JIFFY = 1_000_000


def _set_host_limit(state: HostState, command: c.SetHostLimit) -> None:
    state.allocator.host.set_limit(command.byte_limit)


def _drain(state: HostState, _command: c.DrainHost) -> None:
    state.draining = True
    state.effects.append(Drained())


def _tick(_state: HostState, _command: c.Tick) -> None:
    """What is due was done before the command."""


#: Every command and what carries it out.
HANDLERS: dict[type, Callable[[HostState, Any], Any]] = {
    c.Boot: boot.boot,
    c.CreateVm: vms.create_vm,
    c.UpdateVm: vms.update_vm,
    c.DeleteVm: vms.delete_vm,
    c.ResetVm: vms.reset_vm,
    c.RequestPermission: vms.request_vm_permission,
    c.SetCpuid: vms.set_cpuid,
    c.CreateVcpu: vcpus.create,
    c.DeleteVcpu: vcpus.delete,
    c.SetXsave: vcpu_state.set_xsave,
    c.SetXcrs: vcpu_state.set_xcrs,
    c.SetMsrs: vcpu_state.set_msrs,
    c.CreateTask: tasks.create_task,
    c.CloneTask: tasks.clone,
    c.ExecTask: vms.execute,
    c.ExitTask: tasks.exit_one,
    c.ScheduleTask: tasks.schedule,
    c.PreemptTask: tasks.preempt,
    c.UseFeature: tasks.use,
    c.KernelFpu: tasks.kernel_fpu,
    t.ArchPrctl: signals.prctl,
    t.SetAltstack: signals.set_altstack,
    t.CreateWorker: tasks.create_worker_task,
    t.EnableShadowStack: tasks.enable_shadow_stack_of,
    t.Interrupt: cpus.interrupt,
    t.DeliverSignal: signals.deliver,
    t.EditFrame: signals.edit_frame,
    t.SwapOutFrame: signals.swap_out_frame,
    t.SigReturn: signals.handler_returns,
    t.PtraceGet: signals.ptrace_get,
    t.PtraceSet: signals.ptrace_set,
    t.OfflineCpu: cpus.offline,
    t.OnlineCpu: cpus.online,
    t.IdleCpu: cpus.idle,
    t.SuspendHost: cpus.sleep_and_wake,
    c.OpenSession: sessions.open_session,
    c.KeepAlive: sessions.keep_alive,
    c.CloseSession: sessions.close_session,
    c.SubmitBatch: sessions.submit,
    c.AckDirective: sessions.ack_directive,
    c.AcquireControl: control.acquire,
    c.RenewControl: control.renew,
    c.ReleaseControl: control.release,
    c.ResolveExit: decisions.resolve_exit,
    c.SetHostLimit: _set_host_limit,
    c.DrainHost: _drain,
    c.ArmFault: faults.arm,
    c.DisarmFault: faults.disarm,
    c.ResetFaults: faults.reset,
    c.RenewFaults: faults.renew,
    c.HitFault: faults.hit,
    c.Tick: _tick,
    m.BeginMigration: leaving.begin,
    m.ImportVm: arriving.import_vm,
    m.StageMigration: migrating.stage,
    m.CommitMigration: migrating.commit,
    m.AbortMigration: migrating.abort,
}


class HostMachine:
    """One host. ``apply`` is the only way in."""

    def __init__(self, config: HostConfig, *, tracer: CoreTracer | None = None) -> None:
        self.state = HostState(config, tracer=tracer)
        #: Called after each command with (now_ns, command, reply or Refused): where a log is written.
        self.on_applied: Callable[[int, c.Command, object], None] | None = None

    @classmethod
    def of(cls, state: HostState) -> HostMachine:
        """A machine that knows what is in ``state``, and owns it."""
        machine = cls(state.config)
        machine.state = state
        return machine

    def apply(self, command: c.Command, now_ns: int) -> Any:  # noqa: ANN401 -- each command has its own reply
        """Carry ``command`` out at ``now_ns`` of the host's clock and return its reply.

        What was due before it (leases, delays, deadlines) happens first. Raises ``Refused`` for a caller's mistake,
        after which nothing has changed but time.
        """
        state = self.state
        state.now_ns = max(state.now_ns, now_ns)
        for platform in state.platforms.values():
            platform.host.jiffies = state.now_ns // _NS_PER_JIFFY
        state.revision += 1
        idle = not due(state)
        try:
            reply = self._once(command)
        except Refused as refused:
            state.revision -= idle  # a revision is a change
            self._applied(command, refused)
            raise
        state.revision -= idle and isinstance(command, c.Tick)
        self._applied(command, reply)
        return reply

    def _once(self, command: c.Command) -> Any:  # noqa: ANN401
        """Answer a repeated request id with the answer it had; the same id with another command is a mistake."""
        request_id = getattr(command, "request_id", "")
        if not request_id:
            return self._handle(command)
        known, this = self.state.requests.get(request_id), fingerprint(command)
        if known is not None:
            earlier, reply = known
            if earlier != this:
                method = method_of(earlier)
                text = f"request id {request_id!r} was used before, for another {method}"
                raise Refused(Reason.REQUEST_ID_REUSED, text, requestId=request_id, method=method)
            return reply
        reply = self._handle(command)
        self.state.requests[request_id] = (this, reply)
        while len(self.state.requests) > self.state.config.max_request_ids:
            del self.state.requests[next(iter(self.state.requests))]
        return reply

    def _handle(self, command: c.Command) -> Any:  # noqa: ANN401
        self.state.acting_command = type(command).__name__
        self.state.act_for("")
        try:
            if self.state.leaving:
                leaving.check_not_leaving(self.state, command)
            return HANDLERS[type(command)](self.state, command)
        except FieldError as error:
            raise invalid(error.field, error.expected, error.got) from error
        except WrongStateError as error:
            raise Refused(Reason.VCPU_PARKED, str(error), vcpu=self.state.acting_vcpu, exit="") from error
        except CoreBug as bug:
            raise Refused(Reason.INTERNAL_INVARIANT, f"a bug of the host: {bug}", invariant=bug) from bug

    def _applied(self, command: c.Command, result: object) -> None:
        if self.on_applied is not None:
            self.on_applied(self.state.now_ns, command, result)
        if self.state.config.check_invariants:
            self.check()

    def take_effects(self) -> list[Effect]:
        """Hand over what became known since the last call."""
        effects, self.state.effects = self.state.effects, []
        return effects

    def become(self, other: HostMachine) -> None:
        """Know what ``other`` knows and nothing else; who holds this machine or its state holds it still."""
        self.state.become(other.state)

    def next_deadline_ns(self) -> int | None:
        """When a ``Tick`` would next change something; None for never."""
        return next_deadline_ns(self.state)

    def digest(self) -> str:
        """A SHA-256 over everything the machine knows, register bytes included."""
        return digest(self.state)

    def check(self) -> None:
        """Check every invariant; raises ``CoreBug``."""
        for view in self.state.core_views():
            check_core(view)
        check_host(self.state)
