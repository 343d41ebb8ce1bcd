"""A real vCPU and a modelled one that get the same, round by round, and are looked at after each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, TypeVar

from fpu_core.alloc import Account
from fpu_core.config import FpuConfig
from fpu_core.cpu import Cpu
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu, FpuHost
from fpu_core.layout import XSTATE_BV_OFFSET
from fpu_core.sched import switch_to
from fpu_core.xfeature import (
    MSR_IA32_XFD,
    MSR_IA32_XFD_ERR,
    MSR_IA32_XSS,
    XFEATURE_MASK_AVX512,
    XFEATURE_MASK_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_SSE,
    for_each_set_bit,
)
from host_agent.kvm import intercept
from host_agent.kvm.caps import KvmCaps
from host_agent.kvm.cpuid import CpuidTable, GuestCpuid
from host_agent.kvm.msrs_ioctl import MsrEntry, MsrsSet, get_msrs, set_msrs
from host_agent.kvm.outcome import Done, Inject
from host_agent.kvm.policy import allocation_policy
from host_agent.kvm.run import vcpu_enter, vcpu_leave
from host_agent.kvm.set_cpuid import runtime_cpuid, set_cpuid2
from host_agent.kvm.vcpu import KvmVm, Vcpu, create_vcpu
from host_agent.kvm.xcrs_ioctl import Xcr, get_xcrs, set_xcrs
from host_agent.kvm.xsave_ioctl import get_xsave2, set_xsave
from tests.differential.kvm_device import RealVcpu
from tests.differential.live_guest import (
    PORT_DONE,
    PORT_GP,
    ROUTINES,
    SOURCE_AT,
    address,
    random_source,
    register_writes,
)
from tests.differential.live_kvm_values import Values, bv_of, legal_xcr0
from tests.differential.report import Report

T = TypeVar("T")

MSRS: Final = (MSR_IA32_XFD, MSR_IA32_XFD_ERR, MSR_IA32_XSS)
_UNKNOWN_MSR: Final = 0xDEAD_BEEF
#: FOP, FIP and FDP in an image.
_X87_POINTERS: Final = slice(6, 24)


class ModelVcpu:
    """The model's side: one process, one vCPU without a CPUID, one CPU."""

    def __init__(self, config: FpuConfig, caps: KvmCaps) -> None:
        host = FpuHost(config)
        self.fpu = Fpu(host, "vmm", account=Account("vms/live", host.allocator.host))
        vm = KvmVm(host, self.fpu.account, self.fpu, allocation_policy("on_swap"))
        vm.caps, vm.cpuid = caps, GuestCpuid((), caps)
        created = create_vcpu(vm, 0)
        assert isinstance(created, Vcpu)
        created.cr4_written = 0  # as after KVM_CREATE_VCPU; an operating system sets it before it runs
        self.vcpu = created
        self.fpu.need_load = True
        switch_to(Cpu(0, config), self.fpu)

    def load(self, writes: list[tuple[int, int, bytes]], *, cr4: int) -> list[str]:
        """KVM_SET_SREGS of CR4, then KVM_RUN in which the guest loads registers: (feature, offset, bytes).

        Returns what it took exceptions at.
        """
        self.vcpu.cr4_written = cr4
        faults = []
        vcpu_enter(self.vcpu, self.fpu)
        for feature, offset, raw in writes:
            done = intercept.write_register(self.vcpu, feature=feature, offset=offset, data=raw)
            if not isinstance(done, Done):
                faults.append(f"{done.vector.name} at component {feature}")
        vcpu_leave(self.vcpu)
        return faults

    def xsetbv(self, index: int, value: int, *, cr4: int) -> str:
        """KVM_SET_SREGS of CR4, then KVM_RUN in which the guest executes XSETBV; what came of it."""
        self.vcpu.cr4_written = cr4
        vcpu_enter(self.vcpu, self.fpu)
        answer = intercept.handle_xsetbv(self.vcpu, index=index, value=value)
        vcpu_leave(self.vcpu)
        return answer.vector.name if isinstance(answer, Inject) else "done"


class Pair:
    """A real vCPU and a modelled one that get the same, round by round."""

    def __init__(
        self,
        report: Report,
        rng: random.Random,
        real: RealVcpu,
        model: ModelVcpu,
        supported: CpuidTable,
    ) -> None:
        self.report, self.rng, self.real, self.model = report, rng, real, model
        self.supported = supported
        self.config = model.vcpu.vm.host.config
        self.values = Values(rng, self.config)
        self.where = ""
        #: The image was last written by a save of the processor, not by KVM_SET_XSAVE.
        self.loaded = False

    def round(self, *, first: bool) -> None:
        """One thing done to both, then everything that can be looked at."""
        kinds: list[Callable[[], str]] = [
            self._xcrs,
            self._xsetbv,
            self._xsave,
            self._xsave,
            self._registers,
            self._msrs,
            self._cpuid,
        ]
        kind = self._cpuid if first and self.rng.random() < 0.9 else self.rng.choice(kinds)
        self.where = f"round {self.report.rows}, {kind.__name__.lstrip('_')}"
        self.where += f" ({kind()})"
        vcpu = self.model.vcpu
        self._compare("XCRS after it", [tuple(each) for each in _known(get_xcrs(vcpu))], self.real.get_xcrs())
        ours, theirs = _known(get_xsave2(vcpu)), self.real.get_xsave2(vcpu.guest.uabi_size)
        self._compare_bytes(ours, self._as_architected(ours, theirs) if self.loaded else theirs)
        self._compare("CPUID after it", runtime_cpuid(vcpu), self.real.get_cpuid2())

    # -- the kinds; each returns what it did, for the report -----------------------------------------------------------

    def _xcrs(self) -> str:
        """KVM_SET_XCRS of one value, or of a strange table."""
        rng, supported = self.rng, self.model.vcpu.vm.supported_xcr0
        value = self.values.xcr0(supported)
        odd = rng.randrange(8)
        xcrs, flags, count = [(0, value)], 0, None
        match odd:
            case 0:
                xcrs = [(rng.choice([1, 2, 63, 1 << 31]), value)]
            case 1:
                xcrs, count = [], rng.choice([0, 17, 1 << 31])
            case 2:
                flags = 1 << rng.randrange(32)
            case 3:
                xcrs = [(1, value), (0, value), (0, self.values.xcr0(supported))]
            case 4:
                xcrs = [(0, value)] * rng.choice([2, 16])
            case _:
                pass
        theirs = self.real.set_xcrs(xcrs, flags=flags, nr_xcrs=count)
        given = [Xcr(*each) for each in xcrs] if count is None else [Xcr(0, 0)] * min(count, 17)
        ours = set_xcrs(self.model.vcpu, given, flags)
        self._compare("KVM_SET_XCRS", _errno_of(ours), theirs)
        return f"{[(nr, hex(bits)) for nr, bits in xcrs]} flags={flags:#x} nr={count}"

    def _xsetbv(self) -> str:
        """XSETBV by ring-0 guest code: it goes on, or takes #GP.

        x87 is in its init state. The code does not touch it, so XSAVES may leave out what XRSTORS has just loaded (the
        modified optimization), and then bits that no register has are still in the image.
        """
        vcpu, rng = self.model.vcpu, self.rng
        value = self.values.xcr0(vcpu.vm.supported_xcr0)
        index = rng.choice([0, 0, 0, 0, 1 << 32, 1, 2, 1 << 31])
        self._set_xsave(self.values.buffer(self._start_bv() & ~XFEATURE_MASK_FP, vcpu.guest.uabi_size))
        came_out = self.real.run_ring0(address("write_xcr"), rdi=index, rsi=value)
        self.loaded = True
        ours = self.model.xsetbv(index, value, cr4=self.real.cr4)
        self._compare("XSETBV", ours, {PORT_DONE: "done", PORT_GP: "GP"}.get(came_out, f"port {came_out:#x}"))
        return f"RCX={index:#x}, {value:#x}"

    def _xsave(self) -> str:
        """KVM_SET_XSAVE of a random buffer with at most one thing wrong."""
        raw = self.values.buffer(self.values.bv(), self.model.vcpu.guest.uabi_size)
        what = self.values.damage(raw)
        self._set_xsave(raw)
        return f"xstate_bv={bv_of(raw):#x} mxcsr={raw[24:28][::-1].hex()} {what}".rstrip()

    def _set_xsave(self, raw: bytearray) -> None:
        theirs = self.real.set_xsave(raw)
        self._compare("KVM_SET_XSAVE", _errno_of(set_xsave(self.model.vcpu, bytes(raw))), theirs)
        self.loaded = self.loaded and theirs != 0

    def _registers(self) -> str:
        """Known state by KVM_SET_XSAVE, a legal XCR0, then ring-3 code loads what that XCR0 has."""
        vcpu = self.model.vcpu
        xcr0 = self.rng.choice(legal_xcr0(vcpu.guest_supported_xcr0))
        routine = self.rng.choice(
            [name for name, needed in ROUTINES.items() if not needed & ~xcr0 & ~XFEATURE_MASK_FPSSE]
        )
        base = self.values.buffer(self._start_bv(upper_halves=self._may_clear(routine, xcr0)), vcpu.guest.uabi_size)
        source = random_source(self.rng, mxcsr=self.values.mxcsr())
        self._compare("KVM_SET_XCRS", _errno_of(set_xcrs(vcpu, [Xcr(0, xcr0)])), self.real.set_xcrs([(0, xcr0)]))
        self._set_xsave(base)
        self.real.memory.write(SOURCE_AT, source)
        self.real.run_ring3(address(routine), rdi=SOURCE_AT)
        faults = self.model.load(register_writes(routine, source, xcr0=xcr0), cr4=self.real.cr4)
        self._compare("exceptions in ring 3", faults, [])
        self.loaded = True
        return f"{routine} under XCR0={xcr0:#x}, xstate_bv={bv_of(base):#x} before, source {source[:8].hex()}..."

    def _start_bv(self, *, upper_halves: bool = True) -> int:
        """What is in use when the guest starts.

        SSE always is: with it MXCSR is what was saved, without it what the buffer of KVM_SET_XSAVE had there.
        """
        bv = self.rng.getrandbits(64) & self.model.vcpu.vm.supported_xcr0 | XFEATURE_MASK_SSE
        return bv if upper_halves else bv & ~XFEATURE_MASK_AVX512

    def _may_clear(self, routine: str, xcr0: int) -> bool:
        """Whether it is known what a routine leaves of ZMM_Hi256.

        A VEX load clears the upper halves as far as XCR0 has them, which a nested KVM may see differently; and what
        that does to XINUSE is known only where XINUSE is by content.
        """
        return routine != "load_avx" or bool(self.config.silicon.xinuse_by_content and xcr0 & XFEATURE_MASK_AVX512)

    def _msrs(self) -> str:
        """KVM_SETMSRS of a run of entries, then KVM_GETMSRS."""
        rng = self.rng
        bits = [0, 0, 1 << 18, 1 << 17, 1 << 11, 0x1800, 1 << rng.randrange(64)]
        entries = [(rng.choice([*MSRS, *MSRS, _UNKNOWN_MSR]), rng.choice(bits)) for _ in range(rng.randrange(1, 5))]
        ours = set_msrs(self.model.vcpu, [MsrEntry(*entry) for entry in entries])
        self._compare(
            "KVM_SETMSRS", ours.processed if isinstance(ours, MsrsSet) else -ours, self.real.set_msrs(entries)
        )
        indices = [index for index, _ in entries] + [rng.choice(MSRS)]
        read = _known(get_msrs(self.model.vcpu, indices))
        self._compare("KVM_GETMSRS", [entry.value for entry in read], self.real.get_msrs(indices))
        return str([(hex(index), hex(value)) for index, value in entries])

    def _cpuid(self) -> str:
        """KVM_SET_CPUID2: what is supported, nothing, every entry twice, one bit changed, too many.

        Once the vCPU has run, the tables are made from the one it has: that, and nothing else, is accepted again.
        """
        vcpu, rng = self.model.vcpu, self.rng
        base = self.real.get_cpuid2() if vcpu.has_run else self.supported
        what = rng.choice(["all", "all", "all", "empty", "twice", "changed", "too many"])
        table = {
            "all": base,
            "empty": (),
            "twice": base * 2,
            "changed": self.values.changed(base),
            "too many": self.supported[:1] * 257,
        }[what]
        theirs = self.real.set_cpuid2(table)
        if theirs == 0 and not vcpu.has_run:
            table = self.real.get_cpuid2()  # as this KVM has taken it
        ours = set_cpuid2(vcpu, GuestCpuid(table, vcpu.vm.caps))
        self._compare("KVM_SET_CPUID2", int(ours), theirs)
        return f"{what}, has run: {vcpu.has_run}"

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _compare(self, key: str, ours: object, theirs: object) -> None:
        self.report.compare(self.where, key, ours, theirs)

    def _as_architected(self, ours: bytes, theirs: bytes) -> bytes:
        """Their buffer after a save by the processor, without what the architecture leaves open.

        A processor may say of a component in its init state that it is in use (SDM vol. 1, 13.6): seen of YMM while
        ZMM_Hi256 is in use, on a Zen 5 under a nested KVM. And where the last x87 instruction stood is known only for
        processors that forget it.
        """
        table, bv = self.config.table, bv_of(theirs)
        offsets = table.offsets(self.config.user.max_features, compacted=False)
        for nr in for_each_set_bit(bv & ~bv_of(ours) & self.config.user.max_features & ~XFEATURE_MASK_FPSSE):
            if not any(theirs[offsets[nr] : offsets[nr] + table.size_bytes(nr)]):
                bv &= ~(1 << nr)
        head = theirs[:XSTATE_BV_OFFSET]
        if not self.config.silicon.x87_pointers_need_exception:
            head = head[: _X87_POINTERS.start] + ours[_X87_POINTERS] + head[_X87_POINTERS.stop :]
        return head + bv.to_bytes(8, "little") + theirs[XSTATE_BV_OFFSET + 8 :]

    def _compare_bytes(self, ours: bytes, theirs: bytes) -> None:
        differ = [at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]]
        if len(ours) != len(theirs):
            self._compare("KVM_GET_XSAVE2, bytes", len(ours), len(theirs))
        elif differ:
            at, end = differ[0], differ[-1] + 1
            self._compare(f"KVM_GET_XSAVE2, bytes {at}..{end}", ours[at:end].hex(), theirs[at:end].hex())


def _errno_of(result: object) -> int:
    return int(result) if isinstance(result, Errno) else 0


def _known(result: T | Errno) -> T:
    """What an ioctl gives that has no reason to fail."""
    assert not isinstance(result, Errno), result
    return result
