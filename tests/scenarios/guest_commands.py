"""``guest``: what a VMM reports of its guest, one event at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fpu_core.layout import MXCSR_OFFSET
from fpu_core.tile import TILE_BYTES, TILE_COUNT, TILE_MAX_ROWS, TILE_ROW_BYTES, TILECFG_BYTES, TileOp
from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR, MSR_IA32_XSS, XFEATURE_FP, XFEATURE_NAMES, format_mask
from fpu_core.xsave_insn import MemoryImage, XsaveInsn
from host_agent.commands import SubmitBatch
from host_agent.events import (
    Enter,
    EventKind,
    GuestEvent,
    Hlt,
    Init,
    Intercepts,
    Leave,
    Nm,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    Tile,
    WriteCr4,
    Wrmsr,
    XfdSync,
    Xgetbv,
    Xsave,
    Xsetbv,
)
from host_agent.guest_events import intercepts
from host_agent.kvm.cpuid import X86_CR4_OSXSAVE, X86_CR4_PKE
from tests.scenarios import outcomes
from tests.scenarios.block import ScenarioError
from tests.scenarios.cpuid_commands import guest_cpuid_instruction
from tests.scenarios.operands import Words, feature, mask, number, span
from tests.scenarios.session_commands import session_of
from tests.scenarios.world import World

#: Room for every component in either format.
_MEMORY_BYTES: Final = 12288

#: Of a vCPU that has gone to another host.
_NOTHING_KNOWN: Final = Intercepts(xfd_read=True, xfd_write=True, nm=False)
CR4_BITS: Final = {"OSXSAVE": X86_CR4_OSXSAVE, "PKE": X86_CR4_PKE}
MSRS: Final = {"XFD": MSR_IA32_XFD, "XFD_ERR": MSR_IA32_XFD_ERR, "XSS": MSR_IA32_XSS}


def guest(world: World, words: Words) -> None:
    """Report one event. Its number is the one the host expects, unless ``seq=`` says another."""
    label = words.take("a vCPU or an event") if words.peek().rpartition("/")[2].isdecimal() else ""
    name = world.vcpu_name(label or "0")
    has_gone = name.partition("/vcpus/")[0] in world.state.moved
    vcpu = None if has_gone else world.vcpu(label or "0")
    if words.peek() == "cpuid" and vcpu is not None:
        guest_cpuid_instruction(world, words, vcpu)
        return
    event = words.take(f"one of {', '.join(EVENTS)}")
    if event not in EVENTS:
        raise ScenarioError(f"guest: expected one of {', '.join(EVENTS)}, got {event!r}")
    record = session_of(world, words.key("session"))
    seq = words.key("seq")
    lane, text, kind = EVENTS[event](world, words)
    words.end()
    world.acting_task = None
    world.lanes.event(lane, f"{label}: {text}" if label else text)
    world.event_line = world.lanes.count
    before, expected = _NOTHING_KNOWN, number(seq or "0")
    if vcpu is not None:
        before, expected = intercepts(vcpu), world.state.side(vcpu).next_seq
    report = GuestEvent(name, number(seq) if seq else expected, kind)
    (outcome,) = world.apply(SubmitBatch(session=record.name, epoch=record.epoch, events=(report,)))
    if report.seq < expected:
        outcomes.tell_again(world, outcome)
    else:
        outcomes.tell(world, kind, outcome, before)
    world.tell_effects(said=(outcome,))


Parsed = tuple[str, str, EventKind]


def _enter(_world: World, words: Words) -> Parsed:
    task = words.key("task")
    return "H", f"vcpu_run(){f' on {task}' if task else ''}", Enter(task)


def _leave(_world: World, _words: Words) -> Parsed:
    return "H", "vcpu_run() returns", Leave()


def _preempt(_world: World, words: Words) -> Parsed:
    cpu = words.key("cpu")
    return "H", "preempted" + (f", goes on on cpu {cpu}" if cpu else ""), Preempt(number(cpu) if cpu else None)


def _init(_world: World, _words: Words) -> Parsed:
    return "U", "INIT", Init()


def _hlt(_world: World, _words: Words) -> Parsed:
    return "G", "HLT", Hlt()


def _nm(_world: World, words: Words) -> Parsed:
    ts = words.flag("ts")
    return "G", "#NM exit" + (", CR0.TS=1" if ts else ""), Nm(ts)


def _xsetbv(_world: World, words: Words) -> Parsed:
    value, index, cpl = mask(words.take("a value")), number(words.key("index", "0")), number(words.key("cpl", "0"))
    return "G", f"XSETBV {_xcr(index)}={value:#x}" + (f" at CPL {cpl}" if cpl else ""), Xsetbv(index, value, cpl)


def _wrmsr(_world: World, words: Words) -> Parsed:
    name, value = words.pair("XFD=VALUE or XFD_ERR=VALUE")
    bits = mask(value)
    return "G", f"WRMSR {name}={format_mask(bits)}", Wrmsr(_msr(name), bits)


def _rdmsr(_world: World, words: Words) -> Parsed:
    name = words.take("XFD or XFD_ERR")
    return "G", f"RDMSR {name}", Rdmsr(_msr(name))


def _xgetbv(_world: World, words: Words) -> Parsed:
    index = number(words.take("an index"))
    return "G", f"XGETBV {_xcr(index)}", Xgetbv(index)


def _xcr(index: int) -> str:
    return f"XCR{index:#x}" if index > 9 else f"XCR{index}"


def _write_cr4(_world: World, words: Words) -> Parsed:
    """``write-cr4 OSXSAVE|PKE``: bits by name or number."""
    text = words.take("bits")
    value = sum(CR4_BITS[name] if name in CR4_BITS else number(name) for name in text.split("|"))
    return "G", f"MOV CR4={text}", WriteCr4(value)


def _msr(name: str) -> int:
    return MSRS[name] if name in MSRS else number(name)


def _load(world: World, words: Words) -> Parsed:
    nr, pattern = feature(words.take("a feature")), words.take("a pattern")
    offset, length = _span(world, nr)
    data = world.patterns.bytes_of(pattern, length)
    return "G", f"load {XFEATURE_NAMES[nr]} {pattern}", RegisterWrite(nr, offset, data)


def _read(world: World, words: Words) -> Parsed:
    nr = feature(words.take("a feature"))
    offset, length = _span(world, nr)
    return "G", f"read {XFEATURE_NAMES[nr]}", RegisterRead(nr, offset, length)


def _span(world: World, nr: int) -> tuple[int, int]:
    component = world.vm().platform.host.config.table.components.get(nr)
    return span(nr, component.size_bytes) if component is not None else (0, 1)


def _ldmxcsr(_world: World, words: Words) -> Parsed:
    value = number(words.take("a value"))
    return "G", f"LDMXCSR {value:#x}", RegisterWrite(XFEATURE_FP, MXCSR_OFFSET, value.to_bytes(4, "little"))


def _xfd_sync(_world: World, words: Words) -> Parsed:
    value = mask(words.take("a value"))
    return "H", f"VM exit, the guest left XFD={format_mask(value)}", XfdSync(value)


def _ldtilecfg(world: World, words: Words) -> Parsed:
    """``ldtilecfg 16x64``: eight tiles of that many rows and bytes a row; ``ldtilecfg 0``: palette 0."""
    shape = words.take("ROWSxCOLSB, such as 16x64, or 0")
    rows, _, colsb = shape.partition("x")
    raw = tile_config(number(rows), number(colsb or "0"))
    if number(rows):
        world.patterns.remember(shape, raw)
    return "G", f"LDTILECFG {shape}", Tile(TileOp.LDTILECFG, 0, raw)


def tile_config(rows: int, colsb: int) -> bytes:
    """The 64 bytes of LDTILECFG for eight tiles of one shape; 0 rows is palette 0."""
    if not 0 <= rows <= TILE_MAX_ROWS or not 0 <= colsb <= TILE_ROW_BYTES:
        raise ScenarioError(f"expected up to {TILE_MAX_ROWS}x{TILE_ROW_BYTES}, got {rows}x{colsb}")
    raw = bytearray(TILECFG_BYTES)
    if rows:
        raw[0] = 1
        for tile in range(TILE_COUNT):
            raw[16 + 2 * tile] = colsb
            raw[48 + tile] = rows
    return bytes(raw)


def _tileloadd(world: World, words: Words) -> Parsed:
    tile, pattern = number(words.take("a tile")), words.take("a pattern")
    memory = world.patterns.bytes_of(pattern, TILE_BYTES)
    return "G", f"TILELOADD tmm{tile} {pattern}", Tile(TileOp.TILELOADD, tile, memory)


def _tilestored(_world: World, words: Words) -> Parsed:
    tile = number(words.take("a tile"))
    return "G", f"TILESTORED tmm{tile}", Tile(TileOp.TILESTORED, tile)


def _tilezero(_world: World, words: Words) -> Parsed:
    tile = number(words.take("a tile"))
    return "G", f"TILEZERO tmm{tile}", Tile(TileOp.TILEZERO, tile)


def _tilerelease(_world: World, _words: Words) -> Parsed:
    return "G", "TILERELEASE", Tile(TileOp.TILERELEASE)


def _xsave(insn: XsaveInsn) -> Callable[[World, Words], Parsed]:
    """``xsavec MEMORY rfbm=MASK``: on memory of that name, zeros at first.

    ``xstate_bv=`` and ``xcomp_bv=`` write its header before, ``misaligned=`` moves it.
    """

    def parse(world: World, words: Words) -> Parsed:
        name, asked = words.take("a name for the memory"), words.key("rfbm", "all")
        rfbm = (1 << 64) - 1 if asked == "all" else mask(asked)
        memory = bytearray(world.memories.get(name, bytes(_MEMORY_BYTES)))
        image = MemoryImage(memory)
        text = f"{insn.name} {name} rfbm={asked if asked == 'all' else hex(rfbm)}"
        for key in ("xstate_bv", "xcomp_bv"):
            value = words.key(key)
            if value:
                setattr(image, key, mask(value))
                text += f" {key}={mask(value):#x}"
        misaligned = number(words.key("misaligned", "0"))
        world.memory = name
        world.memories[name] = bytes(memory)
        text += f" at +{misaligned}" if misaligned else ""
        return "G", text, Xsave(insn, rfbm, bytes(memory), misaligned)

    return parse


#: Every event by its word: what reads its operands and returns lane, text and event.
EVENTS: Final[dict[str, Callable[[World, Words], Parsed]]] = {
    "enter": _enter,
    "leave": _leave,
    "preempt": _preempt,
    "init": _init,
    "hlt": _hlt,
    "nm": _nm,
    "xsetbv": _xsetbv,
    "wrmsr": _wrmsr,
    "rdmsr": _rdmsr,
    "load": _load,
    "read": _read,
    "ldmxcsr": _ldmxcsr,
    "xfd-sync": _xfd_sync,
    "ldtilecfg": _ldtilecfg,
    "tileloadd": _tileloadd,
    "tilestored": _tilestored,
    "tilezero": _tilezero,
    "tilerelease": _tilerelease,
    "xgetbv": _xgetbv,
    "write-cr4": _write_cr4,
    **{insn.value: _xsave(insn) for insn in XsaveInsn},
}
