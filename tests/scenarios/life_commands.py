"""What else happens to a task's registers: signals, debuggers, workers, interrupts; and to the CPUs under it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from fpu_core.config import FpuConfig
from fpu_core.errors import Errno
from fpu_core.permission import XcompOp
from fpu_core.sigframe import SW_BYTES_OFFSET, sigframe_size
from fpu_core.task import avx512_status
from fpu_core.xfeature import XFEATURE_NAMES, format_mask
from host_agent.cpus import InterruptReply
from host_agent.signals import SignalReply
from host_agent.task_commands import (
    ArchPrctl,
    CreateWorker,
    DeliverSignal,
    EditFrame,
    EnableShadowStack,
    IdleCpu,
    Interrupt,
    OfflineCpu,
    OnlineCpu,
    PtraceGet,
    PtraceSet,
    SetAltstack,
    SigReturn,
    SuspendHost,
)
from tests.scenarios.block import ScenarioError
from tests.scenarios.operands import FEATURES, Words, feature, mask, number, span
from tests.scenarios.world import World

#: A place in user memory where a GET may put its answer.
_ANSWER: Final = 0x7000_0000_0000
#: Fields of a user-format image by name: offset and form. ``magic2`` lies behind the image, so it has none here.
_FIELDS: Final = {
    "mxcsr": (24, "<I"),
    "magic1": (SW_BYTES_OFFSET, "<I"),
    "sw_xfeatures": (SW_BYTES_OFFSET + 8, "<Q"),
    "xstate_size": (SW_BYTES_OFFSET + 16, "<I"),
    "xstate_bv": (512, "<Q"),
    "xcomp_bv": (520, "<Q"),
    "reserved": (528, "<Q"),
}


# -- calls that return an errno ----------------------------------------------------------------------------------------


def _arch_prctl(world: World, label: str, words: Words) -> None:
    """``task NAME arch-prctl OP [ARG]``: OP by name or number; a GET has a good address unless told another."""
    text = words.take(f"one of {', '.join(XcompOp.__members__)}, or a number")
    op = int(XcompOp[text]) if text in XcompOp.__members__ else number(text)
    arg = number(words.take("an argument")) if words.peek() else _ANSWER
    words.end()
    shown = "&u64" if arg == _ANSWER else (str(arg) if arg < 1 << 16 else hex(arg))
    errno, value = world.apply(ArchPrctl(task=world.task_name(label), op=op, arg=arg))
    says = _says(errno) if value is None else f"{_says(errno)}, {value:#x}"
    world.lanes.user(f"{label}: arch_prctl({text}, {shown})", says)


def _altstack(world: World, label: str, words: Words) -> None:
    text = words.take("a size in bytes, or off")
    words.end()
    size = None if text == "off" else number(text)
    errno = world.apply(SetAltstack(task=world.task_name(label), size_bytes=size))
    world.lanes.user(f"{label}: sigaltstack({'SS_DISABLE' if size is None else size})", _says(errno))


def _shadow_stack(world: World, label: str, words: Words) -> None:
    ssp = number(words.take("a stack pointer"))
    words.end()
    errno = world.apply(EnableShadowStack(task=world.task_name(label), ssp=ssp))
    world.lanes.user(f"{label}: arch_prctl(ARCH_SHSTK_ENABLE)", _says(errno))


def _says(errno: Errno) -> str:
    return "= 0" if errno is Errno.OK else f"= -{errno.name}"


# -- workers and interrupts --------------------------------------------------------------------------------------------


def _kernel_thread(world: World, label: str, words: Words) -> None:
    _worker(world, label, words, user_worker=False)


def _user_worker(world: World, label: str, words: Words) -> None:
    _worker(world, label, words, user_worker=True)


def _worker(world: World, label: str, words: Words, *, user_worker: bool) -> None:
    words.end()
    vm_id, _, task_id = label.rpartition("/")
    _vm, record = world.apply(CreateWorker(vm=world.vm(vm_id).name, task_id=task_id, user_worker=user_worker))
    world.lanes.host(f"{label} created, a {record.fpu.kind.value}", f"home cpu {record.home_cpu}")


def _interrupt(world: World, label: str, words: Words) -> None:
    """``task NAME interrupt softirq|hardirq [kernel-fpu|fpregs-lock]``."""
    context = words.take("softirq or hardirq")
    hits = words.take("what it hits") if words.peek() else "task"
    words.end()
    where = {"task": f"while {label} runs"}.get(hits, f"in {label}'s {hits} section")
    world.lanes.host(f"{context} {where}")
    reply: InterruptReply = world.apply(Interrupt(task=world.task_name(label), context=context, hits=hits))
    world.lanes.inner("irq_fpu_usable()", "yes: kernel_fpu section" if reply.usable else "no: does without")


def _avx512(world: World, label: str, words: Words) -> None:
    words.end()
    status = avx512_status(world.task(label).fpu)
    world.lanes.user(f"{label}: /proc/PID/arch_status", "nothing" if status is None else f"AVX512_elapsed_ms: {status}")


# -- signals -----------------------------------------------------------------------------------------------------------


def _signal(world: World, label: str, words: Words) -> None:
    """``task NAME signal [altstack]``."""
    altstack = words.flag("altstack")
    words.end()
    world.lanes.user(f"{label}: a signal{' on the alternate stack' if altstack else ''}")
    reply: SignalReply = world.apply(DeliverSignal(task=world.task_name(label), altstack=altstack))
    world.lanes.inner(f"frame of {reply.frame_bytes} B", _frame(world, label) if not reply.signal else reply.signal)


def _frame(world: World, label: str) -> str:
    if not world.task(label).fpu.host.config.xsave:
        return "FXSAVE"
    frame = world.task(label).frames[-1]
    start = frame.address - frame.memory.base
    bv, size, features = (
        struct.unpack_from(form, frame.memory.data, start + at)[0]
        for at, form in (_FIELDS[name] for name in ("xstate_bv", "xstate_size", "sw_xfeatures"))
    )
    return f"XSTATE_BV={format_mask(bv)}, sw bytes: {size} B of {features:#x}"


def _read_frame(world: World, label: str, words: Words) -> None:
    """``task NAME reads-frame FEATURE``: both magic words, and what the frame says of one feature."""
    nr = feature(words.take("a feature"))
    words.end()
    frame, config = world.task(label).frames[-1], world.task(label).fpu.host.config
    start = frame.address - frame.memory.base
    image = bytes(frame.memory.data[start : start + config.user_size(config.user.max_features)])
    magic = [_word(image, "magic1"), int.from_bytes(_magic2(frame.memory.data, start, image), "little")]
    in_use = "set" if _word(image, "xstate_bv") >> nr & 1 else "clear"
    says = f"XSTATE_BV[{nr}] {in_use}, {_component(world, config, nr, image)}"
    world.lanes.user(f"{label}: frame, magic {magic[0]:#x} {magic[1]:#x}", says)


def _magic2(data: bytearray, start: int, image: bytes) -> bytes:
    """Behind the image, as its own size says."""
    at = start + _word(image, "xstate_size")
    return bytes(data[at : at + 4])


def _word(image: bytes, name: str) -> int:
    at, form = _FIELDS[name][0], _FIELDS[name][1]
    found: int = struct.unpack_from(form, image, at)[0]
    return found


def _component(world: World, config: FpuConfig, nr: int, image: bytes) -> str:
    """What an image in the user format has at the place of a feature, whatever XSTATE_BV says."""
    at = config.table.offset(config.user.max_features, nr, compacted=False)
    raw = image[at : at + config.table.size_bytes(nr)]
    return f"{XFEATURE_NAMES[nr]}={world.patterns.describe(nr, raw)}"


def _edit(world: World, label: str, words: Words) -> None:
    """``task NAME edits-frame FIELD=VALUE``, or ``FEATURE PATTERN``."""
    record = world.task(label)
    config = record.fpu.host.config
    if words.peek():
        nr, pattern = feature(words.take("a feature")), words.take("a pattern")
        offset, length = span(nr, config.table.size_bytes(nr))
        at = config.table.offset(config.user.max_features, nr, compacted=False) + offset
        data, says = world.patterns.bytes_of(pattern, length), f"{XFEATURE_NAMES[nr]} {pattern}"
    else:
        name, value = words.pair("FIELD=VALUE, or FEATURE PATTERN")
        at, form = _FIELDS[name] if name != "magic2" else (sigframe_size(record.fpu) - 4, "<I")
        data, says = struct.pack(form, mask(value)), f"{name}={value}"
    words.end()
    world.apply(EditFrame(task=world.task_name(label), offset=at, data=data))
    world.lanes.user(f"{label}: the handler writes into its frame", says)


def _sigreturn(world: World, label: str, words: Words) -> None:
    words.end()
    world.lanes.user(f"{label}: sigreturn")
    reply: SignalReply = world.apply(SigReturn(task=world.task_name(label)))
    world.lanes.inner("registers restored" if not reply.signal else "registers cleared", reply.signal)


# -- debuggers ---------------------------------------------------------------------------------------------------------


def _ptrace(world: World, label: str, words: Words) -> None:
    """``ptrace get [LENGTH|FEATURE]`` or ``ptrace set [len=N] [FIELD=VALUE ...] [FEATURE PATTERN]``."""
    way = words.take("get or set")
    if way == "get" and words.peek() in FEATURES:
        nr = feature(words.take("a feature"))
        words.end()
        image, config = _get(world, label, 65536), world.task(label).fpu.host.config
        assert isinstance(image, bytes)
        world.lanes.user(f"{label}: GETREGSET NT_X86_XSTATE", _component(world, config, nr, image))
        return
    if way == "get":
        length = number(words.take("a length")) if words.peek() else 65536
        words.end()
        world.lanes.user(f"{label}: GETREGSET NT_X86_XSTATE", _image(_get(world, label, length)))
        return
    if way != "set":
        raise ScenarioError(f"ptrace: expected get or set, got {way!r}")
    image = _get(world, label, 65536)
    if isinstance(image, Errno):
        raise ScenarioError(f"ptrace set: GETREGSET says {image.name}")
    said, buf = _changed(world, label, words, bytearray(image))
    errno = world.apply(PtraceSet(task=world.task_name(label), data=buf))
    world.lanes.user(f"{label}: SETREGSET NT_X86_XSTATE {said}", _says(errno))


def _get(world: World, label: str, length: int) -> bytes | Errno:
    reply: bytes | Errno = world.apply(PtraceGet(task=world.task_name(label), length=length))
    return reply


def _changed(world: World, label: str, words: Words, image: bytearray) -> tuple[str, bytes]:
    said = []
    length = words.key("len")
    for name in list(_FIELDS):
        value = words.key(name)
        if value:
            struct.pack_into(_FIELDS[name][1], image, _FIELDS[name][0], mask(value))
            said.append(f"{name}={value}")
    if words.peek():
        nr, pattern = feature(words.take("a feature")), words.take("a pattern")
        config = world.task(label).fpu.host.config
        offset, size = span(nr, config.table.size_bytes(nr))
        at = config.table.offset(config.user.max_features, nr, compacted=False) + offset
        image[at : at + size] = world.patterns.bytes_of(pattern, size)
        said.append(f"{XFEATURE_NAMES[nr]} {pattern}")
    words.end()
    if length:
        image = image[: number(length)].ljust(number(length), b"\0")
        said.append(f"{length} B")
    return ", ".join(said), bytes(image)


def _image(image: bytes | Errno) -> str:
    if isinstance(image, Errno):
        return _says(image)
    if len(image) < _FIELDS["xcomp_bv"][0]:
        return f"{len(image)} B"
    bv, features = (struct.unpack_from("<Q", image, at)[0] for at in (_FIELDS["xstate_bv"][0], SW_BYTES_OFFSET))
    return f"{len(image)} B, XSTATE_BV={format_mask(bv)}, sw bytes {features:#x}"


# -- CPUs --------------------------------------------------------------------------------------------------------------


def cpu(world: World, words: Words) -> None:
    """``cpu N offline|online|idle``."""
    nr = number(words.take("a CPU"))
    deed = words.take(f"one of {', '.join(_CPU_DEEDS)}")
    words.end()
    if deed not in _CPU_DEEDS:
        raise ScenarioError(f"cpu: expected one of {', '.join(_CPU_DEEDS)}, got {deed!r}")
    world.lanes.host(f"cpu {nr} {_CPU_SAYS[deed]}")
    world.apply(_CPU_DEEDS[deed](vm=world.vm().name, cpu=nr))


def suspend(world: World, words: Words) -> None:
    """``suspend``: the machine sleeps and wakes."""
    words.end()
    world.lanes.host("the machine sleeps, and wakes up")
    world.apply(SuspendHost(vm=world.vm().name))


_CPU_DEEDS: Final[dict[str, type[OfflineCpu | OnlineCpu | IdleCpu]]] = {
    "offline": OfflineCpu,
    "online": OnlineCpu,
    "idle": IdleCpu,
}
_CPU_SAYS: Final = {"offline": "goes offline", "online": "comes online", "idle": "idles"}

#: What a task can do beside the deeds of ``task_commands``, by its word.
LIFE_DEEDS: Final[dict[str, Callable[[World, str, Words], None]]] = {
    "arch-prctl": _arch_prctl,
    "altstack": _altstack,
    "shadow-stack": _shadow_stack,
    "kernel-thread": _kernel_thread,
    "user-worker": _user_worker,
    "interrupt": _interrupt,
    "avx512": _avx512,
    "signal": _signal,
    "edits-frame": _edit,
    "reads-frame": _read_frame,
    "sigreturn": _sigreturn,
    "ptrace": _ptrace,
}
