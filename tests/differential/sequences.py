"""kernel612_sequences: call sequences that the kernel's own FPU code ran, step by step against ours.

Every key of every step is compared, the ordered hardware operations verbatim. One exception is made, bug B46: where the
kernel leaves XSTATE_BV bits set under XFD in a guest image that is the truth in memory, ours has cleared them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fpu_core.alloc import Account, Allocator
from fpu_core.config import FpuConfig, boot
from fpu_core.cpu import Cpu
from fpu_core.cpuid import CpuCaps, CpuidProfile, CpuidRegs, builtin_profile
from fpu_core.errors import Errno, FieldError
from fpu_core.fpstate import Fpstate
from fpu_core.fpu import Fpu, FpuGuest, FpuHost, StatePerm
from fpu_core.guest import (
    alloc_guest_fpstate,
    enable_guest_xfd_features,
    free_guest_fpstate,
    sync_guest_vmexit_xfd_state,
    update_guest_xfd,
)
from fpu_core.layout import MXCSR_OFFSET, XSTATE_BV_OFFSET
from fpu_core.permission import XcompOp, get_permitted, get_supported, request_permission
from fpu_core.realloc import ReallocFailed
from fpu_core.rules import KERNEL_6_12
from fpu_core.sched import switch_fpu_return, switch_to
from fpu_core.silicon import SDM
from fpu_core.swap import swap_in, swap_out
from fpu_core.task import xfd_enable_feature
from fpu_core.uabi import fpu_copy_guest_fpstate_to_uabi, fpu_copy_uabi_to_guest_fpstate
from fpu_core.xfeature import for_each_set_bit
from tests.differential.layouts import profile_of_row
from tests.differential.report import NotModelledError, Report, load_rows
from tests.differential.snapshot import container_of

#: Processors whose sub-leaves stand in for a row's that has none: the row says features and sizes, and they must agree.
_REFERENCE_PROFILES = ("sapphire-rapids", "zen4", "skylake-sp")


#: Which of the save instructions a processor has, the best first.
_SAVE_FLAGS: tuple[dict[str, bool], ...] = (
    {},
    {"XSAVES": False},
    {"XSAVES": False, "XSAVEC": False},
    {"XSAVES": False, "XSAVEC": False, "XSAVEOPT": False},
)


#: Room for every component of every processor.
_UABI_BYTES = 16384
#: PKRU of the vCPU before each ``fromui``, by the data's convention.
_PKRU_BEFORE = 0x55555555


class RecordingTracer:
    """Writes operations down in the words of the data."""

    def __init__(self, caps: CpuCaps) -> None:
        # The kernel uses the best instruction there is. Source: xstate.h, os_xsave(); boot data for the restore.
        best = [name for name in ("XSAVES", "XSAVEC", "XSAVEOPT") if getattr(caps, name)]
        self._save = best[0] if best else "XSAVE"
        self._restore = "XRSTORS" if caps.XSAVES else "XRSTOR"
        self.lines: list[str] = []
        self.names: dict[int, str] = {}
        self._keep: list[Fpstate] = []

    def name(self, fpstate: Fpstate) -> str:
        """The data's name of a container: ``buf0`` and so on in the order of allocation, or the task's own."""
        return self.names.get(id(fpstate), "task_builtin")

    def vzalloc(self, size_bytes: int, fpstate: Fpstate | None) -> None:
        """An allocation, or one that failed (None)."""
        if fpstate is None:
            self.lines.append(f"VZALLOC {size_bytes} FAIL")
            return
        self._keep.append(fpstate)  # so that no id is used twice
        name = self.names[id(fpstate)] = f"buf{len(self.names)}"
        self.lines.append(f"VZALLOC {size_bytes} -> {name}")

    def vfree(self, fpstate: Fpstate) -> None:
        """Memory given back."""
        self.lines.append(f"VFREE {self.name(fpstate)}")

    def shrink(self, old: Fpstate, _new: Fpstate) -> None:
        """A container shrunk, which no recorded kernel does."""
        raise AssertionError(f"shrink of {self.name(old)}")

    def save(self, fpstate: Fpstate, rfbm: int) -> None:
        """Registers saved."""
        self.lines.append(f"{self._save} {self.name(fpstate)} rfbm={rfbm:#x}")

    def restore(self, fpstate: Fpstate, rfbm: int) -> None:
        """Registers restored."""
        self.lines.append(f"{self._restore} {self.name(fpstate)} rfbm={rfbm:#x}")

    def copy(self, to: Fpstate, of: Fpstate) -> None:
        """An image copied in memory, which no recorded kernel does."""
        raise AssertionError(f"memcpy of {self.name(of)} to {self.name(to)}")

    def write_xfd(self, value: int) -> None:
        """XFD written."""
        self.lines.append(f"WRMSR IA32_XFD {value:#x}")

    def pr_err(self, _text: str) -> None:
        """The kernel prints an error; the data has no text for it."""
        self.lines.append("pr_err")

    def warn(self, condition: str) -> None:
        """The kernel warns."""
        self.lines.append(f"WARN({condition})")


@dataclass
class World:
    """One task, one vCPU, one CPU: what a row runs on."""

    host: FpuHost
    cpu: Cpu
    fpu: Fpu
    guest: FpuGuest
    tracer: RecordingTracer
    fail_next: bool = False
    guest_seen: bool = False
    out: str | None = None
    handlers: dict[str, Callable[[list[str]], int]] = field(default_factory=dict)

    @classmethod
    def create(cls, config: FpuConfig) -> World:
        """A task that runs on one CPU, with a vCPU that has no container yet."""
        tracer = RecordingTracer(config.caps)
        allocator = Allocator()
        host = FpuHost(config, allocator, tracer)
        cpu = Cpu(0, config, tracer)
        fpu = Fpu(host, "task", account=Account("vm", allocator.host))
        cpu.current, fpu.cpu = fpu, cpu
        cpu.owner, fpu.last_cpu = fpu, 0
        world = cls(host, cpu, fpu, FpuGuest(), tracer)
        allocator.should_fail = world._should_fail
        world.handlers = {
            "alloc": world._alloc,
            "free": world._free,
            "enable": world._enable,
            "swap": world._swap,
            "use": world._use,
            "gxfd": world._gxfd,
            "vmexit": world._vmexit,
            "schedout": world._schedout,
            "fpuret": world._fpuret,
            "nm": world._nm,
            "prctl": world._prctl,
            "failnext": world._failnext,
            "altstack": world._altstack,
            "toui": world._toui,
            "fromui": world._fromui,
        }
        return world

    def run(self, op: str) -> int:
        """Carry one operation of a row out and return what the kernel would; ``NotModelledError`` for unknown ones."""
        word, *args = op.split()
        if word not in self.handlers:
            raise NotModelledError(f"operation {op!r}: expected one of {', '.join(self.handlers)}")
        self.tracer.lines.clear()
        self.out = None
        return self.handlers[word](args)

    def _should_fail(self, _point: str, _account: str, _size_bytes: int) -> Errno:
        failed, self.fail_next = self.fail_next, False
        return Errno.ENOMEM if failed else Errno.OK

    def _alloc(self, _args: list[str]) -> int:
        done = alloc_guest_fpstate(self.fpu, self.guest) is None
        self.guest_seen = self.guest_seen or done
        return int(done)

    def _free(self, _args: list[str]) -> int:
        free_guest_fpstate(self.fpu, self.guest)
        return 0

    def _enable(self, args: list[str]) -> int:
        return -enable_guest_xfd_features(self.fpu, self.guest, int(args[0], 16))

    def _swap(self, args: list[str]) -> int:
        if args[0] == "1":
            swap_in(self.fpu, self.guest)
        else:
            swap_out(self.fpu, self.guest)
        return 0

    def _use(self, args: list[str]) -> int:
        cpu = self.cpu
        for nr in for_each_set_bit(int(args[0], 16) & cpu.xcr0 & ~cpu.xfd):
            cpu.write_register(nr, 0, bytes([nr + 1]))
        return 0

    def _gxfd(self, args: list[str]) -> int:
        update_guest_xfd(self.fpu, self.guest, int(args[0], 16))
        return 0

    def _vmexit(self, args: list[str]) -> int:
        self.cpu.xfd = int(args[0], 16)
        sync_guest_vmexit_xfd_state(self.cpu)
        return 0

    def _schedout(self, _args: list[str]) -> int:
        switch_to(self.cpu, None)
        self.cpu.owner = None
        switch_to(self.cpu, self.fpu)
        return 0

    def _fpuret(self, _args: list[str]) -> int:
        switch_fpu_return(self.fpu)
        return 0

    def _nm(self, args: list[str]) -> int:
        result = xfd_enable_feature(self.fpu, int(args[0], 16))
        if isinstance(result, ReallocFailed):
            return -(Errno.EPERM if result.errno is Errno.EPERM else Errno.EFAULT)
        return 0

    def _prctl(self, args: list[str]) -> int:
        op, feature = XcompOp(int(args[0], 16)), int(args[1], 16)
        match op:
            case XcompOp.GET_SUPP:
                self.out = hex(get_supported(self.fpu))
            case XcompOp.GET_PERM | XcompOp.GET_GUEST_PERM:
                self.out = hex(get_permitted(self.fpu, guest=op is XcompOp.GET_GUEST_PERM))
            case XcompOp.REQ_PERM | XcompOp.REQ_GUEST_PERM:
                return -request_permission(self.fpu, feature, guest=op is XcompOp.REQ_GUEST_PERM)
        return 0

    def _failnext(self, _args: list[str]) -> int:
        self.fail_next = True
        return 0

    def _altstack(self, args: list[str]) -> int:
        self.fpu.sas_ss_size = int(args[0])  # the one decimal argument
        return 0

    def _toui(self, args: list[str]) -> int:
        buf = fpu_copy_guest_fpstate_to_uabi(self.host, self.guest, _UABI_BYTES, int(args[0], 16), _PKRU_BEFORE)
        self.out = hex(int.from_bytes(buf[XSTATE_BV_OFFSET : XSTATE_BV_OFFSET + 8], "little"))
        return 0

    def _fromui(self, args: list[str]) -> int:
        bv, xcr0, mxcsr, xcomp_bv = (int(arg, 16) for arg in args)
        buf = bytearray(_UABI_BYTES)
        struct.pack_into("<I", buf, MXCSR_OFFSET, mxcsr)
        struct.pack_into("<QQ", buf, XSTATE_BV_OFFSET, bv, xcomp_bv)
        result = fpu_copy_uabi_to_guest_fpstate(self.host, self.guest, bytes(buf), xcr0)
        pkru = _PKRU_BEFORE if isinstance(result, Errno) or result.pkru is None else result.pkru
        self.out = hex(pkru)
        return -result if isinstance(result, Errno) else 0

    def snapshot(self, ret: int) -> dict[str, object]:
        """The world in the form of a recorded step."""
        fpu, cpu = self.fpu, self.cpu
        step: dict[str, object] = {
            "ret": ret,
            "trace": list(self.tracer.lines),
            "fpu.fpstate": self._container(fpu.fpstate),
            "fpu.__task_fpstate": self._container(fpu.task_fpstate),
            "perm": _perm(fpu.perm),
            "guest_perm": _perm(fpu.guest_perm),
            "hw_xfd": hex(cpu.xfd),
            "xfd_cache": hex(cpu.xfd_cache),
            "hw_inuse": hex(cpu.xinuse),
            "tif_need_fpu_load": int(fpu.need_load),
        }
        if self.guest_seen:
            step["guest.fpstate"] = self._container(self.guest.fpstate)
            step["guest.xfeatures"] = hex(self.guest.xfeatures)
            step["guest.perm"] = hex(self.guest.perm)
            step["guest.uabi_size"] = self.guest.uabi_size
        if self.out is not None:
            step["out"] = self.out
        return step

    def _container(self, fpstate: Fpstate | None) -> dict[str, object] | None:
        return None if fpstate is None else container_of(fpstate, self.tracer.name(fpstate))


def _perm(perm: StatePerm) -> list[object]:
    return [hex(perm.state_perm), perm.state_size, perm.user_state_size]


def run(path: Path, name_prefix: str = "") -> Report:
    """Run every row of ``path`` whose name starts with ``name_prefix``."""
    report = Report("sequences")
    steps = 0
    for row in load_rows(path):
        if row["name"].startswith(name_prefix):
            report.rows += 1
            steps += _compare_row(report, row)
    report.notes.append(f"{steps} steps")
    return report


def _compare_row(report: Report, row: dict[str, Any]) -> int:
    world = World.create(_config(row))
    hidden = 0  # the bits that bug B46 leaves in the data, kept to the end of the row
    for number, (op, theirs) in enumerate(zip(row["ops"], row["steps"], strict=True)):
        where = f"{row['cpu']}, {row['name']!r}, step {number} ({op})"
        ours = world.snapshot(world.run(op)) | {"op": theirs["op"]}
        hidden |= _left_behind(theirs)
        for key in theirs.keys() | ours.keys():
            if key in ("op", "arg"):
                continue
            report.compare(where, key, _without(ours, key, hidden), _without(theirs, key, hidden))
    return len(row["ops"])


def _left_behind(step: dict[str, Any]) -> int:
    """L of the comparison rule: XSTATE_BV & XFD of a guest image that is the truth in memory."""
    guest = step.get("guest.fpstate")
    if not guest or (guest["in_use"] and not step["tif_need_fpu_load"]):
        return 0
    return int(guest["xstate_bv"], 16) & int(guest["xfd"], 16)


def _without(step: dict[str, Any], key: str, hidden: int) -> object:
    value = step.get(key)
    if not hidden or value is None:
        return value
    if isinstance(value, dict) and value["is_guest"]:
        return value | {"xstate_bv": hex(int(value["xstate_bv"], 16) & ~hidden)}
    guest = step.get("guest.fpstate")
    if key == "hw_inuse" and guest and guest["in_use"]:
        return hex(int(value, 16) & ~hidden)
    if key == "out" and step["op"] == "toui":
        return hex(int(value, 16) & ~hidden)
    if key == "trace":
        return [line for line in value if line != "#NM_IN_KERNEL"]
    return value


def _config(row: dict[str, Any]) -> FpuConfig:
    """Boot a host whose features and sizes are the row's.

    The processor is the row's own where its leaves are known; otherwise one put together from a reference processor's
    components. Either way the row says what must come out.
    """
    for profile in _candidates(row):
        try:
            config = boot(profile, KERNEL_6_12, silicon=SDM)
        except FieldError:  # this reference lacks a component of the row
            continue
        found = {
            "kernel_max_features": hex(config.kernel.max_features),
            "user_max_features": hex(config.user.max_features),
            "kernel_default_features": hex(config.kernel.default_features),
            "kernel_default_size": config.kernel.default_size,
            "user_default_size": config.user.default_size,
        }
        if found == row["initial"]:
            return config
    raise NotModelledError(f"no reference processor fits {row['cpu']}: {row['initial']}")


def _candidates(row: dict[str, Any]) -> Iterator[CpuidProfile]:
    known = _known_processors().get(row.get("file", ""))
    if known is not None:
        yield known
    for flags in _SAVE_FLAGS:
        for name in _REFERENCE_PROFILES:
            with suppress(FieldError):
                yield _profile(row, builtin_profile(name), flags)


@cache
def _known_processors() -> dict[str, CpuidProfile]:
    """The processors of the boot data in the tree, by the name of their dump."""
    found = {}
    for row in load_rows(Path(__file__).parent.parent / "data" / "kernel612_boot_config.json.gz"):
        with suppress(FieldError):  # a truncated dump is no processor
            found[row["file"]] = profile_of_row(row)
    return found


def _profile(row: dict[str, Any], reference: CpuidProfile, flags: dict[str, bool]) -> CpuidProfile:
    user = int(row["initial"]["user_max_features"], 16)
    supervisor = int(row["initial"]["kernel_max_features"], 16) & ~user
    leaves = {(0xD, nr): _subleaf(reference, nr) for nr in for_each_set_bit((user | supervisor) & ~3)}
    leaves[0xD, 0] = CpuidRegs(user & 0xFFFF_FFFF, 0, 0, user >> 32)
    leaves[0xD, 1] = CpuidRegs(0, 0, supervisor & 0xFFFF_FFFF, supervisor >> 32)
    return CpuidProfile(row["cpu"], leaves, CpuCaps(*(True,) * len(CpuCaps._fields))._replace(**flags))


def _subleaf(reference: CpuidProfile, nr: int) -> CpuidRegs:
    regs = reference.regs(0xD, nr)
    return regs if regs.eax else builtin_profile("sapphire-rapids").regs(0xD, nr)
