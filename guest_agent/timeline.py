"""What a guest does, in sentences: lane G of the founding mail's traces, made of the steps of a port and of marks.

    {"t": 81234567890, "lane": "G", "vcpu": "vms/a/vcpus/0", "text": "WRMSR XFD=0  -> intercept", "tone": "plain", ...}

`t` is CLOCK_MONOTONIC in nanoseconds, which all processes of a machine share. Tile instructions come by the dozen, so a
run of the same one that simply happens is one line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fpstated.link.trace import current_trace
from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR, XFEATURE_NAMES, format_mask
from guest_agent.event import (
    Enter,
    GuestEvent,
    Hlt,
    Init,
    Leave,
    Nm,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    Tile,
    TileOp,
    WriteCr4,
    Wrmsr,
    XfdSync,
    Xgetbv,
    Xsave,
    Xsetbv,
)
from guest_agent.outcome import Done, Gone, Injected, Outcome, Pending, Rejected
from guest_agent.report import GuestMark, Mark
from guest_agent.step import PortStep

MSR_NAMES: Mapping[int, str] = {MSR_IA32_XFD: "XFD", MSR_IA32_XFD_ERR: "XFD_ERR"}
VECTOR_NAMES: Mapping[int, str] = {6: "#UD", 7: "#NM", 13: "#GP"}

_TILE_NUMBERED = (TileOp.TILELOADD, TileOp.TILESTORED, TileOp.TILEZERO)


@dataclass(frozen=True, slots=True)
class GuestLine:
    """One line of lane G. `tone` says how to show it: plain, growth, failure, exit, event; `fields` is for programs."""

    t_ns: int
    vcpu: str
    text: str
    tone: str = "plain"
    fields: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the line as a process writes it."""
        record = {"t": self.t_ns, "lane": "G", "vcpu": self.vcpu, "text": self.text, "tone": self.tone}
        return json.dumps(record | dict(self.fields), separators=(",", ":"))


class GuestTimeline:
    """Turns the steps and marks of one vCPU into lines. Give `step` to a port's `on_step`, `mark` to a guest."""

    def __init__(self, vcpu: str, on_line: Callable[[GuestLine], None]) -> None:
        self._vcpu = vcpu
        self._on_line = on_line
        self._quiet: list[Tile] = []
        self._quiet_since_ns = 0
        self._begun_ns = 0

    def step(self, step: PortStep) -> None:
        """Take a step of the port."""
        if isinstance(step.event, Tile):
            self._tile(step.event, step)
        elif step.outcome is None and step.event is not None and not isinstance(step.event, Rdmsr):
            self.say(describe_event(step.event), seq=step.seq)
        elif step.outcome is not None:
            self._outcome(step.event, step.outcome, step.seq)

    def mark(self, mark: GuestMark) -> None:
        """Take what the guest said."""
        tone = "failure" if mark.mark in (Mark.MISMATCH, Mark.FAULT) else "event"
        self.say(f"guest says {mark.mark.name} {mark.value:#x}", tone, mark=mark.mark.name, value=mark.value)

    def say(self, text: str, tone: str = "plain", **fields: object) -> None:
        """Write a line of one's own."""
        self._flush()
        self._say_at(time.monotonic_ns(), text, tone, fields)

    def _say_at(self, t_ns: int, text: str, tone: str, fields: Mapping[str, object]) -> None:
        trace = current_trace()
        named = fields if trace is None else {**fields, "trace_id": trace.trace_id}
        self._on_line(GuestLine(t_ns, self._vcpu, text, tone, named))

    def _tile(self, tile: Tile, step: PortStep) -> None:
        """Hold a tile instruction back until it is known whether it simply happens; its line has the time it began."""
        if step.outcome is None:
            self._begun_ns = time.monotonic_ns()
            return
        if isinstance(step.outcome, Done):
            if self._quiet and self._quiet[-1].op is not tile.op:
                self._flush()
            if not self._quiet:
                self._quiet_since_ns = self._begun_ns
            self._quiet.append(tile)
            return
        self._flush()
        self._say_at(self._begun_ns, f"{describe_event(tile)}  -> #UD, forwarded", "plain", {"seq": step.seq})
        self._outcome(tile, step.outcome, step.seq)

    def _flush(self) -> None:
        quiet, self._quiet = self._quiet, []
        if quiet:
            self._say_at(self._quiet_since_ns, f"{_tiles(quiet)}  -> #UD, forwarded", "plain", {"count": len(quiet)})

    def _outcome(self, event: GuestEvent | None, outcome: Outcome, seq: int) -> None:
        match outcome:
            case Done(value=value) if isinstance(event, Rdmsr):
                shown = "nothing" if value is None else f"{value:#x}"
                self.say(f"{describe_event(event)} = {shown}", seq=seq)
            case Injected(vector=vector, xfd_err=xfd_err):
                err = f"  XFD_ERR={format_mask(xfd_err)}" if vector == 7 else ""
                self.say(f"takes {VECTOR_NAMES.get(vector, vector)}{err}", "event", seq=seq, vector=vector)
            case Pending(exit=name, generation=generation):
                self.say("waits for the decision", "exit", seq=seq, exit=name, generation=generation)
            case Gone(directive=directive):
                self.say(f"gone: {directive}", "failure", seq=seq, directive=directive.kind.value)
            case Rejected(refusal=refusal):
                self.say(f"rejected: {refusal.message}", "failure", seq=seq, reason=refusal.reason)
            case _:
                pass


def describe_event(event: GuestEvent) -> str:  # noqa: C901, PLR0912 -- one case a kind
    """Return an event as a line of a trace has it: ``WRMSR XFD=0x40000  -> intercept``."""
    match event:
        case Enter(task=task):
            return f"KVM_RUN {task}".rstrip()
        case Leave():
            return "KVM_RUN returns"
        case Preempt(cpu=cpu):
            return "preempted" if cpu is None else f"preempted, goes on on CPU {cpu}"
        case Xsetbv(value=value, index=index):
            return f"XSETBV XCR{index}={value:#x}  -> intercept"
        case Wrmsr(msr=msr, value=value):
            return f"WRMSR {_msr(msr)}={value:#x}  -> intercept"
        case Rdmsr(msr=msr):
            return f"RDMSR {_msr(msr)}"
        case Nm(cr0_ts=cr0_ts):
            return "#NM, CR0.TS set" if cr0_ts else "#NM  -> intercept"
        case RegisterWrite(feature=feature, offset=offset, data=content):
            return f"loads {len(content)} B of {_feature(feature)} at {offset}"
        case RegisterRead(feature=feature, offset=offset, length=length):
            return f"reads {length} B of {_feature(feature)} at {offset}"
        case Tile():
            return _tiles([event])
        case XfdSync(xfd=xfd):
            return f"vmexit, XFD={xfd:#x} read"
        case Init():
            return "INIT"
        case Hlt():
            return "HLT"
        case Xgetbv(index=index):
            return f"XGETBV XCR{index}"
        case WriteCr4(value=value):
            return f"MOV CR4={value:#x}"
        case Xsave(insn=insn, rfbm=rfbm):
            return f"{insn.value} RFBM={rfbm:#x}"


def _tiles(tiles: list[Tile]) -> str:
    """Return a run of one tile instruction: ``TILELOADD tmm0..tmm7``."""
    op = tiles[0].op
    if op not in _TILE_NUMBERED:
        return op.value
    first, last = tiles[0].tile, tiles[-1].tile
    if len(tiles) == 1:
        return f"{op.value} tmm{first}"
    if [tile.tile for tile in tiles] == list(range(first, last + 1)):
        return f"{op.value} tmm{first}..tmm{last}"
    return f"{op.value} {len(tiles)} tiles"


def _msr(msr: int) -> str:
    return MSR_NAMES.get(msr, f"{msr:#x}")


def _feature(feature: int) -> str:
    return XFEATURE_NAMES.get(feature, f"component {feature}")
