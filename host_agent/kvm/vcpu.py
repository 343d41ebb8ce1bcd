"""Vcpu and Vm: what KVM knows about a guest, beside its FPU container.

Source: arch/x86/include/asm/kvm_host.h, struct kvm_vcpu_arch (xcr0, ia32_xss, cpuid_entries,
guest_supported_xcr0, guest_fpu, xfd_no_write_intercept, pkru).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fpu_core.alloc import Account, AllocFailure
from fpu_core.errors import Errno
from fpu_core.fpstate import Fpstate, fpstate_clear_xstate_component, fpstate_init_user
from fpu_core.fpu import Fpu, FpuGuest, FpuHost
from fpu_core.guest import guest_container, update_guest_xfd
from fpu_core.layout import FXSAVE_SIZE_BYTES
from fpu_core.permission import get_permitted
from fpu_core.xfeature import (
    XFEATURE_MASK_FP,
    XFEATURE_MASK_USER_DYNAMIC,
    XFEATURE_MASK_XTILE_CFG,
    for_each_set_bit,
)
from host_agent.kvm.caps import KvmCaps, kvm_caps
from host_agent.kvm.cpuid import X86_CR4_OSXSAVE, X86_CR4_PKE, CpuidTable, GuestCpuid
from host_agent.kvm.lifecycle import VcpuEvent, VcpuState, next_state
from host_agent.kvm.supported_cpuid import cut_down, hide_features, supported_cpuid

if TYPE_CHECKING:
    from host_agent.kvm.policy.allocation_policy import AllocationPolicy


@dataclass(slots=True, eq=False)
class KvmVm:
    """One VM as KVM sees it: the host it runs on, the account that pays, the process it belongs to."""

    host: FpuHost
    account: Account
    #: The VMM's main thread: the group leader, whose permissions count.
    leader: Fpu
    #: When memory for a larger container is taken.
    policy: AllocationPolicy
    vcpus: dict[int, Vcpu] = field(default_factory=dict)
    #: The VM type keeps its confidential vCPUs' state from userspace and says so (EINVAL): newer SEV-ES, SNP, TDX.
    #: Without it a confidential vCPU reads as zeros and takes every write in silence: KVM_SEV_ES_INIT, the older way.
    has_protected_state: bool = False
    #: What KVM could give a guest on this host.
    caps: KvmCaps = field(init=False)
    #: The CPUID of vCPUs that were given none of their own: all the host supports, until one is set for the VM.
    cpuid: GuestCpuid = field(init=False)
    #: Whether somebody has set it.
    cpuid_given: bool = False
    #: KVM_RUNs of its vCPUs that have ended. Source: kvm_put_guest_fpu(), vcpu->stat.fpu_reload.
    fpu_reload: int = 0
    _masked: dict[int, GuestCpuid] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.caps = kvm_caps(self.host.config)
        self.cpuid = GuestCpuid(self.supported_cpuid(self.supported_xcr0), self.caps)

    @property
    def supported_xcr0(self) -> int:
        """kvm_caps.supported_xcr0: what KVM could give a guest on this host, permission aside."""
        return self.caps.supported_xcr0

    @property
    def guest_supported_xcr0(self) -> int:
        """What a vCPU made now may enable by its CPUID."""
        return self.cpuid.supported_xcr0

    @property
    def given_xcr0(self) -> int:
        """The same, of the CPUID that was set for the VM; 0 where none was."""
        return self.cpuid.supported_xcr0 if self.cpuid_given else 0

    def supported_cpuid(self, xcr0: int) -> CpuidTable:
        """KVM_GET_SUPPORTED_CPUID for a process that may use ``xcr0`` in its guests."""
        config = self.host.config
        return supported_cpuid(config.profile, config.table, self.caps, xcr0=xcr0)

    def masked_cpuid(self, xcr0: int) -> GuestCpuid:
        """All the host supports, cut down to ``xcr0``: a CPUID for those who do not want to make a table. Made once."""
        found = self._masked.get(xcr0)
        if found is None:
            everything = self.supported_cpuid(self.supported_xcr0)
            found = GuestCpuid(cut_down(everything, self.host.config.table, xcr0=xcr0), self.caps)
            self._masked[xcr0] = found
        return found

    def hide(self, xfeatures: int) -> None:
        """Take ``xfeatures`` from the CPUID of the VM's vCPUs and of those to come; one that has run keeps its own."""
        made: dict[str, GuestCpuid] = {}

        def without(cpuid: GuestCpuid) -> GuestCpuid:
            found = made.get(cpuid.fingerprint)
            if found is None:
                table = hide_features(cpuid.table, self.host.config.table, xfeatures)
                found = made[cpuid.fingerprint] = GuestCpuid(table, self.caps)
            return found

        self.cpuid = without(self.cpuid)
        for vcpu in self.vcpus.values():
            if not vcpu.has_run:
                vcpu.cpuid = without(vcpu.cpuid)

    @property
    def permitted_xcr0(self) -> int:
        """What of it the process may use now: 17 goes where 18 may not. Source: x86.h, kvm_get_filtered_xcr0()."""
        permitted = self.supported_xcr0
        if permitted & XFEATURE_MASK_USER_DYNAMIC:
            permitted &= get_permitted(self.leader, guest=True)
            if not permitted & XFEATURE_MASK_USER_DYNAMIC:
                permitted &= ~XFEATURE_MASK_XTILE_CFG
        return permitted


class Vcpu:
    """One vCPU. Small on purpose: a host has a hundred thousand of them."""

    __slots__ = (
        "agent",
        "cpuid",
        "cr4_written",
        "fpu",
        "guest",
        "has_run",
        "incarnation",
        "index",
        "nm_intercept",
        "pkru",
        "serial",
        "state",
        "vm",
        "xcr0",
        "xfd_passthrough",
        "xss",
    )

    def __init__(self, vm: KvmVm, index: int, serial: int = 0) -> None:
        self.vm = vm
        self.index = index
        #: Which creation this was: a later vCPU of the same index has another.
        self.serial = serial
        self.guest = FpuGuest()
        #: The task whose KVM_RUN this vCPU is in; None outside.
        self.fpu: Fpu | None = None
        self.state = VcpuState.OUTSIDE
        self.xcr0 = XFEATURE_MASK_FP
        #: IA32_XSS. RESET clears it, INIT keeps it.
        self.xss = 0
        #: The guest's CPUID, as set last: shared with the VM's other vCPUs unless set for this one alone.
        self.cpuid = vm.cpuid
        #: CR4 as the guest wrote it last; None while nobody has reported a write.
        self.cr4_written: int | None = None
        #: From the first KVM_RUN on the CPUID cannot change. RESET allows it again.
        self.has_run = False
        self.pkru = 0
        #: #NM exits are taken: from the first non-zero XFD on.
        self.nm_intercept = False
        #: XFD is written by the guest without an exit; what it wrote shows at the next one.
        self.xfd_passthrough = False
        #: Counts resets: a stale answer to an earlier life is recognised by it.
        self.incarnation = 1
        #: What the process around KVM keeps about this vCPU. KVM never looks at it.
        self.agent: object | None = None

    @property
    def fpstate(self) -> Fpstate:
        """The guest's container."""
        return guest_container(self.guest)

    @property
    def guest_supported_xcr0(self) -> int:
        """What the guest's CPUID lets it put into XCR0, bit 0 aside."""
        return self.cpuid.supported_xcr0

    @property
    def cr4(self) -> int:
        """CR4. Until a write of it is reported, as an operating system has set it before it first touches XCR0."""
        if self.cr4_written is not None:
            return self.cr4_written
        osxsave = X86_CR4_OSXSAVE if "XSAVE" in self.vm.caps.features else 0
        return osxsave | (X86_CR4_PKE if "PKU" in self.cpuid.features else 0)

    @property
    def enabled_xcr0(self) -> int:
        """The components whose instructions do not raise #UD: none of XCR0's while CR4.OSXSAVE is 0."""
        return self.xcr0 if self.cr4 & X86_CR4_OSXSAVE else 0

    @property
    def guest_supported_xss(self) -> int:
        """What the guest's CPUID lets it put into XSS."""
        return self.cpuid.supported_xss

    @property
    def has_xfd(self) -> bool:
        """Whether the guest has XFD: its CPUID says so (0xD.1 EAX[4]), and KVM has it."""
        return "XFD" in self.cpuid.features

    @property
    def xfd_allowed(self) -> int:
        """The bits XFD and XFD_ERR may have. Source: x86.c, kvm_set_msr_common()."""
        return self.guest_supported_xcr0 & XFEATURE_MASK_USER_DYNAMIC

    def move(self, event: VcpuEvent) -> None:
        """Change the state by the table; ``WrongStateError`` if it does not allow it."""
        self.state = next_state(self.state, event)

    def __repr__(self) -> str:
        return f"<Vcpu {self.index} {self.state.name} {self.guest.fpstate} request={self.guest.realloc_request}>"


def create_vcpu(vm: KvmVm, index: int, *, serial: int = 0, confidential: bool = False) -> Vcpu | AllocFailure | Errno:
    """KVM_CREATE_VCPU: allocate what the policy wants by then and lock guest permissions.

    ``AllocFailure`` is its ENOMEM; an ``Errno`` is that of KVM_SET_CPUID2 with the CPUID the whole VM has. Neither
    leaves anything behind.
    """
    vcpu = Vcpu(vm, index, serial)
    failure = vm.policy.create(vcpu)
    if failure is not None:
        return failure
    vcpu.cpuid = vm.policy.first_cpuid(vcpu)
    vcpu.fpstate.is_confidential = confidential
    vm.vcpus[index] = vcpu
    return vcpu


def destroy_vcpu(vcpu: Vcpu) -> None:
    """Free what a vCPU has, which is outside the guest."""
    vcpu.vm.policy.destroy(vcpu)
    del vcpu.vm.vcpus[vcpu.index]


def reset_vcpu(vcpu: Vcpu) -> None:
    """RESET: XCR0 = 1, XSS = 0, XFD = 0, registers in their init state; the container keeps its size.

    Interception is not re-armed: it never is. Source: x86.c, kvm_vcpu_reset() and kvm_xstate_reset().
    """
    vcpu.move(VcpuEvent.RESET)
    vcpu.xcr0 = XFEATURE_MASK_FP
    vcpu.xss = 0
    vcpu.has_run = False
    clear_cr4(vcpu)
    vcpu.guest.xfd_err = 0
    vcpu.pkru = 0
    # Not by XSTATE_BV alone: FXRSTOR loads x87 and SSE, and a standard-format XRSTOR loads MXCSR, whatever it says.
    vcpu.fpstate.regs[:FXSAVE_SIZE_BYTES] = bytes(FXSAVE_SIZE_BYTES)
    fpstate_init_user(vcpu.fpstate, vcpu.vm.host.config)
    update_guest_xfd(None, vcpu.guest, 0)
    vcpu.incarnation += 1


def clear_cr4(vcpu: Vcpu) -> None:
    """RESET and INIT make CR4 0, for a vCPU whose CR4 is reported."""
    if vcpu.cr4_written is not None:
        vcpu.cr4_written = 0


def init_vcpu(vcpu: Vcpu) -> None:
    """INIT keeps XCR0 and every register but MPX and CET ones. The vCPU must be outside: its image is what is changed.

    Source: x86.c, kvm_vcpu_reset() and kvm_xstate_reset() on INIT.
    """
    config = vcpu.vm.host.config
    for nr in for_each_set_bit(vcpu.fpstate.xfeatures & config.rules.init_clears):
        fpstate_clear_xstate_component(vcpu.fpstate, config, nr)
