"""Guest events, as messages: one reader per kind, all in one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fpstate.v1 import event_pb2

from fpu_core.tile import TileOp
from fpu_core.xsave_insn import XsaveInsn
from host_agent import events as e
from host_agent.service.errors import field_invalid
from host_agent.service.translate.fields import task_id_in, vcpu_name

TILE_OPS: Final[dict[int, TileOp]] = {
    event_pb2.TILE_OP_LDTILECFG: TileOp.LDTILECFG,
    event_pb2.TILE_OP_STTILECFG: TileOp.STTILECFG,
    event_pb2.TILE_OP_TILERELEASE: TileOp.TILERELEASE,
    event_pb2.TILE_OP_TILELOADD: TileOp.TILELOADD,
    event_pb2.TILE_OP_TILESTORED: TileOp.TILESTORED,
    event_pb2.TILE_OP_TILEZERO: TileOp.TILEZERO,
}

XSAVE_INSNS: Final[dict[int, XsaveInsn]] = {
    event_pb2.XSAVE_INSN_XSAVE: XsaveInsn.XSAVE,
    event_pb2.XSAVE_INSN_XSAVEOPT: XsaveInsn.XSAVEOPT,
    event_pb2.XSAVE_INSN_XSAVEC: XsaveInsn.XSAVEC,
    event_pb2.XSAVE_INSN_XRSTOR: XsaveInsn.XRSTOR,
}


def event_from_proto(path: str, message: event_pb2.GuestEvent) -> e.GuestEvent:
    """Read one event; ``Failure`` names the field. What depends on the vCPU's state is the machine's to judge."""
    vcpu = vcpu_name(f"{path}.vcpu", message.vcpu)
    if message.seq == 0:
        raise field_invalid(f"{path}.seq", "a number from 1", 0)
    kind = message.WhichOneof("kind")
    if kind is None:
        raise field_invalid(f"{path}.kind", "one of the kinds of event", "none")
    return e.GuestEvent(vcpu, message.seq, _KINDS[kind](f"{path}.{kind}", vcpu, getattr(message, kind)))


def enter(path: str, vcpu: str, task: str) -> e.Enter:
    """An entry; the task has to be one of the vCPU's VM."""
    return e.Enter(task=task_id_in(f"{path}.task", vm_of(vcpu), task))


def register_write(path: str, *, feature: int, offset: int, data: bytes) -> e.RegisterWrite:
    """A register load; whether the component takes it is the machine's to judge."""
    if not data:
        raise field_invalid(f"{path}.data", "1 byte at least", "none")
    return e.RegisterWrite(feature, offset, data)


def tile(path: str, *, op: int, tile_nr: int, memory: bytes) -> e.Tile:
    """A tile instruction that there is."""
    known = TILE_OPS.get(op)
    if known is None:
        raise field_invalid(f"{path}.op", f"one of {', '.join(each.name for each in TILE_OPS.values())}", op)
    return e.Tile(known, tile_nr, memory)


def xsave(path: str, *, insn: int, rfbm: int, misaligned_by: int, memory: bytes) -> e.Xsave:
    """An XSAVE instruction that there is; whether the memory is enough is the machine's to judge."""
    known = XSAVE_INSNS.get(insn)
    if known is None:
        raise field_invalid(f"{path}.insn", f"one of {', '.join(each.name for each in XSAVE_INSNS.values())}", insn)
    return e.Xsave(known, rfbm, memory, misaligned_by)


def vm_of(vcpu: str) -> str:
    """The VM's name in a vCPU's."""
    return vcpu.partition("/vcpus/")[0]


_KINDS: Final[dict[str, Callable[[str, str, Any], e.EventKind]]] = {
    "enter": lambda path, vcpu, m: enter(path, vcpu, m.task),
    "leave": lambda _path, _vcpu, _m: e.Leave(),
    "preempt": lambda _path, _vcpu, m: e.Preempt(cpu=m.cpu if m.HasField("cpu") else None),
    "xsetbv": lambda _path, _vcpu, m: e.Xsetbv(index=m.index, value=m.value, cpl=m.cpl),
    "wrmsr": lambda _path, _vcpu, m: e.Wrmsr(msr=m.msr, value=m.value),
    "rdmsr": lambda _path, _vcpu, m: e.Rdmsr(msr=m.msr),
    "nm": lambda _path, _vcpu, m: e.Nm(cr0_ts=m.cr0_ts),
    "register_write": lambda path, _vcpu, m: register_write(path, feature=m.feature, offset=m.offset, data=m.data),
    "register_read": lambda _path, _vcpu, m: e.RegisterRead(m.feature, m.offset, m.length),
    "tile": lambda path, _vcpu, m: tile(path, op=m.op, tile_nr=m.tile, memory=m.memory),
    "xfd_sync": lambda _path, _vcpu, m: e.XfdSync(xfd=m.xfd),
    "init": lambda _path, _vcpu, _m: e.Init(),
    "hlt": lambda _path, _vcpu, _m: e.Hlt(),
    "xgetbv": lambda _path, _vcpu, m: e.Xgetbv(index=m.index),
    "write_cr4": lambda _path, _vcpu, m: e.WriteCr4(value=m.value),
    "xsave": lambda path, _vcpu, m: xsave(
        path, insn=m.insn, rfbm=m.rfbm, misaligned_by=m.misaligned_by, memory=m.memory
    ),
}

#: Each kind's name on the wire: what a field's path has after the event's own.
FIELD_OF_KIND: Final[dict[type, str]] = {
    e.Enter: "enter",
    e.Leave: "leave",
    e.Preempt: "preempt",
    e.Xsetbv: "xsetbv",
    e.Wrmsr: "wrmsr",
    e.Rdmsr: "rdmsr",
    e.Nm: "nm",
    e.RegisterWrite: "register_write",
    e.RegisterRead: "register_read",
    e.Tile: "tile",
    e.XfdSync: "xfd_sync",
    e.Init: "init",
    e.Hlt: "hlt",
    e.Xgetbv: "xgetbv",
    e.WriteCr4: "write_cr4",
    e.Xsave: "xsave",
}
