"""The books of host tasks: what each has put into its registers is what it finds there, wherever they are.

Fed with every command of a host and its result, in order, from the beginning of its log on; so a host that recovers
has its books made anew with its machine. The machine's own records are looked at beside them, never asked what to
expect. A check that does not hold is a pair: its name, and what was found.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fault_lab.sim.register_image import in_image, in_registers
from fault_lab.sim.registers import NotWhatWasLoadedError, Registers, task_registers, without_mxcsr
from fpu_core.config import FpuConfig
from fpu_core.errors import Errno
from fpu_core.layout import MXCSR_OFFSET, XSTATE_BV_OFFSET
from fpu_core.rt_signal import SignalFrame
from fpu_core.sched import read_pkru
from fpu_core.sigframe import SW_BYTES_OFFSET
from fpu_core.task import avx512_status
from fpu_core.xfeature import XFEATURE_MASK_SSE, XFEATURE_PKRU, for_each_set_bit
from host_agent import commands as c
from host_agent import task_commands as t
from host_agent.cpus import InterruptReply
from host_agent.machine import HostMachine
from host_agent.signals import SignalReply
from host_agent.state import HostState, TaskRecord
from host_agent.tasks import FeatureUse

Found = Iterator[tuple[str, str]]
#: Commands whose results say something of the registers of the task that they name.
_OF_USER_TASKS: Final = (
    *(c.CloneTask, c.ExecTask, c.UseFeature),
    *(t.DeliverSignal, t.EditFrame, t.SigReturn, t.PtraceSet),
)
#: Within the software bytes of a frame: its own size, and the padding behind it.
SAID_SIZE_OFFSET: Final = SW_BYTES_OFFSET + 16
_PADDING: Final = slice(SW_BYTES_OFFSET + 20, SW_BYTES_OFFSET + 48)
_U64: Final = struct.Struct("<Q")
#: Reserved bytes of a header, of which XRSTOR wants the first eight to be 0. Source: SDM vol. 1, 13.8.1.
RESERVED_OFFSET: Final = XSTATE_BV_OFFSET + 16
RESERVED_BYTES: Final = 8


@dataclass(slots=True)
class _Handled:
    """A signal that is being handled: the registers of before, the size that the frame has, what was done to it."""

    before: Registers
    user_size: int
    spoilt: bool = False
    #: Something was written into it whose meaning nobody here knows.
    unknown: bool = False


@dataclass(slots=True)
class _Known:
    """What is known of a task."""

    registers: Registers
    handled: list[_Handled] = field(default_factory=list)
    #: It has returned from a signal, so that the registers may hold what its container has no room for. Source:
    #: docs/findings.md, tiles of the task before, after a sigreturn.
    more_in_registers: bool = False


class TaskBooks:
    """What every task of one host must find in its registers, by the task's uid."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def note(self, machine: HostMachine, command: c.Command, result: object) -> Found:
        """A command was carried out: look at what it said, and at every task after it."""
        state = machine.state
        if not isinstance(result, Exception):
            yield from self._said(state, command, result)
        tasks = [task for vm in state.vms.values() for task in vm.tasks.values()]
        for task in tasks:
            if task.fpu.is_worker:
                yield from _worker(task)
            else:
                known = self._known.setdefault(task.uid, _Known(task_registers(task.fpu.host.config)))
                yield from _holds(task, known.registers)
        there = {task.uid for task in tasks}
        for uid in [uid for uid in self._known if uid not in there]:
            del self._known[uid]

    def _said(self, state: HostState, command: c.Command, result: object) -> Found:
        """What the command says of its task."""
        if isinstance(command, t.Interrupt):
            yield from _interrupted(command, result)
        elif isinstance(command, _OF_USER_TASKS):
            _vm, task = state.task(command.task)
            known = self._known.get(task.uid)
            if known is not None:
                yield from self._said_of(task, known, command, result)

    def _said_of(self, task: TaskRecord, known: _Known, command: c.Command, result: object) -> Found:
        match command, result:
            case c.CloneTask(), (_, TaskRecord() as child):
                self._known[child.uid] = _Known(known.registers.cloned())
            case c.ExecTask(), _:
                self._known[task.uid] = _Known(task_registers(task.fpu.host.config))
            case c.UseFeature(), FeatureUse(signal=""):
                yield from _used(task, known, command, result)
            case t.DeliverSignal(), SignalReply(signal=""):
                known.handled.append(_Handled(known.registers, task.fpu.fpstate.user_size))
                yield from _frame_is_true(task, task.frames[-1], known.registers)
                known.registers = task_registers(task.fpu.host.config)
            case t.EditFrame(), _:
                _edited(command, known.handled[-1], believed=task.fpu.host.config.rules.sigframe_says_its_size)
            case t.SigReturn(), SignalReply():
                yield from _returned(task, known, result)
            case t.PtraceSet(), Errno():
                yield from _ptraced(task, known, command, result)
            case _:
                pass


# -- what commands say -------------------------------------------------------------------------------------------------


def _interrupted(command: t.Interrupt, result: object) -> Found:
    may = command.hits == "task" or (command.hits == "fpregs-lock" and command.context == "softirq")
    if isinstance(result, InterruptReply) and result.usable != may:
        yield "interrupt-keeps-off", f"a {command.context} in {command.hits} used the FPU: {result.usable}"


def _used(task: TaskRecord, known: _Known, command: c.UseFeature, result: FeatureUse) -> Found:
    """A register was loaded, and read back."""
    if result.growth is not None and known.more_in_registers:
        known.registers, known.more_in_registers = _as_found(task), False
        return
    registers, nr, at, end = known.registers, command.feature, command.offset, command.offset + command.length
    if command.data:
        registers.write(nr, at, command.data)
    if not command.length:
        return
    expected = [_pkru_bytes(registers)] if nr == XFEATURE_PKRU else registers.expected(nr)
    size = registers.config.table.size_bytes(nr)
    found = without_mxcsr(nr, bytes(at) + result.data + bytes(size - end))[at:end]
    if found not in [without_mxcsr(nr, each)[at:end] for each in expected]:
        yield "task-reads-its-bytes", f"{command.task}: component {nr} reads {found[:24].hex()}..."


def _pkru_bytes(registers: Registers) -> bytes:
    return registers.pkru.to_bytes(registers.config.table.size_bytes(XFEATURE_PKRU), "little")


def _edited(command: t.EditFrame, handled: _Handled, *, believed: bool) -> None:
    if command.offset == SAID_SIZE_OFFSET and len(command.data) == 4 and not believed:
        return
    if command.offset >= RESERVED_OFFSET and command.offset + len(command.data) <= RESERVED_OFFSET + RESERVED_BYTES:
        handled.spoilt = handled.spoilt or any(command.data)
    else:
        handled.unknown = True


def _returned(task: TaskRecord, known: _Known, result: SignalReply) -> Found:
    handled = known.handled.pop()
    known.more_in_registers = True
    config = task.fpu.host.config
    # A handler that has grown the container finds its frame's magic word at another place: docs/findings.md.
    grown = handled.user_size != task.fpu.fpstate.user_size
    if handled.unknown or grown or not config.xsave:
        known.registers = _as_found(task)
        return
    if bool(result.signal) != handled.spoilt:
        yield (
            "sigreturn-brings-back",
            f"{task.id}: {result.signal or 'restored'} from a frame that is spoilt: {handled.spoilt}",
        )
    known.registers = task_registers(config) if handled.spoilt else handled.before


def _frame_is_true(task: TaskRecord, frame: SignalFrame, registers: Registers) -> Found:
    """Every byte of a frame is defined, and XSTATE_BV is of components that the program had in use."""
    fpstate, config = task.fpu.fpstate, task.fpu.host.config
    start = frame.address - frame.memory.base
    raw = bytes(frame.memory.data[start : start + fpstate.user_size])
    if any(raw[_PADDING]):
        yield "frame-tells-the-truth", f"{task.id}: the padding of the software bytes is {raw[_PADDING].hex()}"
    if not config.xsave:
        return
    (bv,) = _U64.unpack_from(raw, XSTATE_BV_OFFSET)
    if bv & ~fpstate.user_xfeatures:
        yield "frame-tells-the-truth", f"{task.id}: XSTATE_BV {bv:#x} of {fpstate.user_xfeatures:#x} that were written"
    offsets = config.table.offsets(fpstate.user_xfeatures, compacted=False)
    for nr in registers.features():
        if bv >> nr & 1:
            found = without_mxcsr(nr, raw[offsets[nr] : offsets[nr] + config.table.size_bytes(nr)])
            if found not in [without_mxcsr(nr, each) for each in registers.expected(nr)]:
                yield "frame-tells-the-truth", f"{task.id}: component {nr} is {found[:24].hex()}..."
    if config.has_pkru and (bv >> XFEATURE_PKRU & 1 or registers.pkru):
        at = offsets[XFEATURE_PKRU]
        pkru = int.from_bytes(raw[at : at + 4], "little") if bv >> XFEATURE_PKRU & 1 else 0
        if pkru != registers.pkru:
            yield "frame-tells-the-truth", f"{task.id}: PKRU {pkru:#x}, the program had {registers.pkru:#x}"


def _ptraced(task: TaskRecord, known: _Known, command: t.PtraceSet, errno: Errno) -> Found:
    config = task.fpu.host.config
    whole = len(command.data) >= config.user.max_size
    if errno is Errno.OK and not whole:
        text = f"{task.id}: {len(command.data)} bytes are taken for the {config.user.max_size} of the state"
        yield "ptrace-takes-all-or-nothing", text
    if errno is Errno.OK:
        known.registers = _from_uabi(config, command.data)


def _from_uabi(config: FpuConfig, buf: bytes) -> Registers:
    """What a buffer in the user format makes of a task's registers."""
    (bv,) = _U64.unpack_from(buf, XSTATE_BV_OFFSET)
    offsets = config.table.offsets(bv, compacted=False)
    after = Registers(config)
    for nr in for_each_set_bit(bv):
        raw = buf[offsets[nr] : offsets[nr] + config.table.size_bytes(nr)]
        if nr == XFEATURE_PKRU:
            after.pkru = int.from_bytes(raw[:4], "little")
        else:
            after.candidates[nr] = [raw]
    if bv & XFEATURE_MASK_SSE:
        after.mxcsr = int.from_bytes(buf[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")
    return after


# -- every task after every command ------------------------------------------------------------------------------------


def _worker(task: TaskRecord) -> Found:
    if avx512_status(task.fpu) is not None:
        yield "workers-have-no-registers", f"{task.id} is asked when it last used AVX-512"


def _holds(task: TaskRecord, registers: Registers) -> Found:
    """The registers, or the image, hold what the books say."""
    fpu = task.fpu
    found, mxcsr, hidden = _there(task)
    try:
        registers.seen_all(found, mxcsr, hidden=hidden, who=task.id)
    except NotWhatWasLoadedError as error:
        yield "task-reads-its-bytes", str(error)
    now = fpu.pkru if fpu.cpu is None else read_pkru(fpu.cpu)
    if now != registers.pkru:
        yield "task-reads-its-bytes", f"{task.id}: PKRU {now:#x}, loaded was {registers.pkru:#x}"


def _there(task: TaskRecord) -> tuple[dict[int, bytes], int, int]:
    """Component -> bytes, MXCSR, and the components that cannot be seen now, of the task's own context."""
    fpu = task.fpu
    own = fpu.task_fpstate if fpu.task_fpstate is not None else fpu.fpstate
    if fpu.fpstate is own and not fpu.need_load and fpu.cpu is not None:
        return *in_registers(fpu.cpu), own.xfd
    return *in_image(fpu.host.config, own), own.xfd


def _as_found(task: TaskRecord) -> Registers:
    """Books that begin with what is there."""
    found, mxcsr, _hidden = _there(task)
    registers = Registers(task.fpu.host.config, mxcsr=mxcsr)
    registers.candidates = {nr: [copy.copy(raw)] for nr, raw in found.items() if nr in registers.features()}
    registers.pkru = task.fpu.pkru if task.fpu.cpu is None else read_pkru(task.fpu.cpu)
    return registers
