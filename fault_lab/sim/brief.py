"""Requests and replies in a few words, for the history."""

from __future__ import annotations

from functools import singledispatch

from fpstate.v1 import vcpu_pb2

from fault_lab.sim.attach import Hello
from fault_lab.sim.migration import ExportVm, GetMigration, Image, ListMigrations, Migration
from fault_lab.sim.reads import Read, Registers
from fault_lab.sim.services import Done, GetExit, Held, Listed, ListExits, WaitOutcome, WatchExits
from fault_lab.sim.wire import Answer
from guest_agent.opening import Opened
from guest_agent.outcome import Done as DoneOutcome
from guest_agent.outcome import Gone, Injected, Outcome, Pending, Rejected
from host_agent import commands as c
from host_agent import migration_commands as m
from vmm_controller.policy import ExitView

_VECTORS = {6: "#UD", 7: "#NM", 13: "#GP"}


@singledispatch
def brief(value: object) -> str:
    """One line, without bytes."""
    return type(value).__name__


@brief.register
def _(value: c.SubmitBatch) -> str:
    events = ", ".join(f"{event.seq} {_operands(event.kind)}" for event in value.events)
    return f"epoch {value.epoch}: {events}"


def _operands(kind: object) -> str:
    numbers = [
        f"{name}={number:#x}" for name in ("msr", "value") if isinstance(number := getattr(kind, name, None), int)
    ]
    return " ".join([type(kind).__name__, *numbers])


@brief.register
def _(value: c.OpenSession) -> str:
    return f"{len(value.vcpus)} vCPUs"


@brief.register
def _(value: Hello) -> str:
    return f"epoch {value.epoch}: {len(value.vcpus)} vCPUs"


@brief.register(ListMigrations)
@brief.register(ExportVm)
@brief.register(m.BeginMigration)
def _(value: ListMigrations | ExportVm | m.BeginMigration) -> str:
    return value.vm


@brief.register(m.ImportVm)
@brief.register(m.StageMigration)
@brief.register(m.CommitMigration)
@brief.register(m.AbortMigration)
def _(value: m.ImportVm | m.StageMigration | m.CommitMigration | m.AbortMigration) -> str:
    return value.migration


@brief.register
def _(value: GetMigration) -> str:
    return value.name


@brief.register
def _(value: Migration) -> str:
    return f"{value.name} {value.state.name} epoch {value.epoch}"


@brief.register
def _(value: Image) -> str:
    return f"{len(value.data)} bytes"


@brief.register
def _(value: tuple) -> str:  # type: ignore[type-arg]
    return ", ".join(brief(each) for each in value)


@brief.register
def _(value: c.ResolveExit) -> str:
    return f"{value.exit} generation {value.generation} epoch {value.control_epoch}: {value.decision.kind.name}"


@brief.register(c.KeepAlive)
@brief.register(c.RenewControl)
def _(value: c.KeepAlive | c.RenewControl) -> str:
    return f"epoch {value.epoch}"


@brief.register
def _(value: c.CreateVcpu) -> str:
    return f"{value.vm}/vcpus/{value.index}"


@brief.register
def _(value: c.CreateVm) -> str:
    return value.vm_id


@brief.register
def _(value: WaitOutcome) -> str:
    return f"epoch {value.epoch}: {value.seq}"


@brief.register
def _(value: WatchExits) -> str:
    return f"{value.vm or 'all'} from revision {value.from_revision}"


@brief.register
def _(value: ListExits) -> str:
    return value.vm or "all"


@brief.register
def _(value: GetExit) -> str:
    return value.name


@brief.register
def _(value: Answer) -> str:
    return _outcome(value.outcome)


@brief.register(DoneOutcome)
@brief.register(Injected)
@brief.register(Gone)
@brief.register(Pending)
@brief.register(Rejected)
def _outcome(value: Outcome) -> str:
    match value:
        case DoneOutcome(reallocated=growth) if growth is not None:
            return f"done, grown from {growth.old_bytes} to {growth.new_bytes} bytes"
        case DoneOutcome(value=read):
            return "done" if read is None else f"done {read:#x}"
        case Injected(vector=vector):
            return _VECTORS.get(vector, str(vector))
        case Gone(directive=directive):
            return f"gone: {directive}"
        case Pending(exit=name, generation=generation):
            return f"pending on {name} generation {generation}"
        case Rejected(refusal=refusal):
            return f"rejected {refusal.reason}"
        case _:
            return f"blocked behind {value.expected_seq}"


@brief.register
def _(value: Read) -> str:
    return value.vcpu


@brief.register
def _(value: vcpu_pb2.Vcpu) -> str:
    state = vcpu_pb2.VcpuState.Name(value.state).removeprefix("VCPU_STATE_")
    return f"{state} xcr0={value.xcr0:#x} xfd={value.xfd:#x} xfd_err={value.xfd_err:#x} next {value.next_seq}"


@brief.register
def _(value: Registers) -> str:
    return " ".join(f"{name}={number:#x}" for name, number in value.read)


@brief.register
def _(value: Opened) -> str:
    return f"epoch {value.key.epoch}, next {[each.next_seq for each in value.vcpus]}"


@brief.register
def _(value: Held) -> str:
    return f"epoch {value.epoch}"


@brief.register
def _(value: Listed) -> str:
    return f"{len(value.exits)} exits at revision {value.revision}"


@brief.register
def _(value: ExitView) -> str:
    return f"{value.name} generation {value.generation} {value.state.name}"


@brief.register
def _(_value: Done) -> str:
    return ""
