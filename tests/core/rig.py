"""One task on one of two CPUs, with whatever processor a test wants: the smallest host there is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fpu_core.alloc import Account, AllocFailure
from fpu_core.config import FpuConfig, boot
from fpu_core.context import fpregs_restore_userregs
from fpu_core.cpu import Cpu
from fpu_core.cpuid import CpuidProfile, CpuidRegs, builtin_profile
from fpu_core.errors import Errno
from fpu_core.fpstate import Fpstate
from fpu_core.fpu import Fpu, FpuGuest, FpuHost
from fpu_core.guest import alloc_guest_fpstate
from fpu_core.invariants import CoreView, check_core
from fpu_core.permission import request_permission
from fpu_core.rules import KERNEL_6_18, KernelRules
from fpu_core.sched import switch_to
from fpu_core.trace import CoreTracer
from fpu_core.xfeature import XFEATURE_APX, XFEATURE_MASK_APX, XFEATURE_XTILE_DATA

SPR = "sapphire-rapids"


def without_compaction(name: str = "skylake-sp", *, xsave: bool = True) -> CpuidProfile:
    """A built-in processor without XSAVEC and XSAVES, so that images are in the standard format; or without XSAVE."""
    profile = builtin_profile(name)
    caps = profile.caps._replace(XSAVEC=False, XSAVES=False, XSAVE=xsave, XSAVEOPT=False)
    return replace(profile, caps_override=caps)


def with_apx() -> CpuidProfile:
    """Sapphire Rapids and APX: its component lies behind tile data, so its offset tells one layout from another.

    Size, standard offset (the one of MPX, which is gone) and flags: Intel APX specification, 3.1.4.2.
    """
    profile = builtin_profile(SPR)
    leaves = dict(profile.leaves)
    main = leaves[0xD, 0]
    leaves[0xD, 0] = main._replace(eax=main.eax | XFEATURE_MASK_APX)
    leaves[0xD, XFEATURE_APX] = CpuidRegs(128, 960, 0, 0)
    return replace(profile, leaves=leaves, caps_override=profile.caps._replace(APX=True))


@dataclass
class Rig:
    """A host with two CPUs and one running task whose registers are live."""

    host: FpuHost
    cpus: list[Cpu]
    fpu: Fpu
    guests: list[FpuGuest]

    @classmethod
    def create(
        cls, profile: CpuidProfile | str = SPR, *, rules: KernelRules = KERNEL_6_18, tracer: CoreTracer | None = None
    ) -> Rig:
        """Boot, start the task on CPU 0, and let it use its registers."""
        found = builtin_profile(profile) if isinstance(profile, str) else profile
        host = FpuHost(boot(found, rules), tracer=tracer)
        cpus = [Cpu(nr, host.config, tracer) for nr in range(2)]
        rig = cls(host, cpus, Fpu(host, "task", account=Account("vm", host.allocator.host)), [])
        rig.fpu.need_load = True
        switch_to(cpus[0], rig.fpu)
        fpregs_restore_userregs(rig.fpu)
        return rig

    @property
    def config(self) -> FpuConfig:
        """The boot configuration."""
        return self.host.config

    @property
    def cpu(self) -> Cpu:
        """Where the task runs."""
        assert self.fpu.cpu is not None
        return self.fpu.cpu

    def permit(self, *, guest: bool = True) -> None:
        """Permission for tile data."""
        assert request_permission(self.fpu, XFEATURE_XTILE_DATA, guest=guest) is Errno.OK

    def guest(self) -> FpuGuest:
        """A vCPU with its default container."""
        guest = FpuGuest()
        assert alloc_guest_fpstate(self.fpu, guest) is None
        self.guests.append(guest)
        return guest

    def fail_allocations(self) -> None:
        """From now on there is no memory."""
        self.host.allocator.should_fail = lambda _point, _account, _size: Errno.ENOMEM

    def view(self) -> CoreView:
        """What the invariants talk about."""
        accounts = [self.fpu.account, self.host.allocator.host]
        guests = [(guest, self.fpu.account) for guest in self.guests]
        return CoreView(self.host, self.cpus, [self.fpu], guests, accounts)

    def check(self) -> None:
        """Every invariant."""
        check_core(self.view())


def allocated(result: bytearray | AllocFailure) -> bytearray:
    """The memory, where there must be some."""
    assert isinstance(result, bytearray)
    return result


def container(guest: FpuGuest) -> Fpstate:
    """The container of a vCPU that has one."""
    assert guest.fpstate is not None
    return guest.fpstate


class Lines:
    """A tracer that writes operations down, a word each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def vzalloc(self, size_bytes: int, fpstate: Fpstate | None) -> None:
        """Note an allocation, or that there was none."""
        self.lines.append(f"vzalloc {size_bytes}{'' if fpstate else ' failed'}")

    def vfree(self, fpstate: Fpstate) -> None:
        """Note what was given back."""
        self.lines.append(f"vfree {fpstate.allocated_bytes}")

    def shrink(self, old: Fpstate, new: Fpstate) -> None:
        """Note what became smaller."""
        self.lines.append(f"shrink {old.allocated_bytes} to {new.allocated_bytes}")

    def save(self, fpstate: Fpstate, rfbm: int) -> None:
        """Note a save."""
        self.lines.append(f"save {_whose(fpstate)} {rfbm:#x}")

    def restore(self, fpstate: Fpstate, rfbm: int) -> None:
        """Note a restore."""
        self.lines.append(f"restore {_whose(fpstate)} {rfbm:#x}")

    def copy(self, to: Fpstate, of: Fpstate) -> None:
        """Note a copy in memory."""
        self.lines.append(f"memcpy {_whose(of)} to {_whose(to)}")

    def write_xfd(self, value: int) -> None:
        """Note the register's new value."""
        self.lines.append(f"wrmsr xfd {value:#x}")

    def pr_err(self, text: str) -> None:
        """Note what the kernel prints."""
        self.lines.append(text)

    def warn(self, condition: str) -> None:
        """Note what the kernel warns of."""
        self.lines.append(f"WARN({condition})")


def _whose(fpstate: Fpstate) -> str:
    return f"{'guest' if fpstate.is_guest else 'task'}:{fpstate.size}"
