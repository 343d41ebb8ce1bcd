"""live-kvm: the machine's real KVM and the model get the same ioctls and the same guest code, and answer the same.

The model is built from the running processor's own CPUID; what KVM supports of it is KVM's to say. A round is one of:
XCR0 by KVM_SET_XCRS, with its oddities, or by a guest's XSETBV; a KVM_SET_XSAVE buffer, valid or damaged; MSRs;
KVM_SET_CPUID2; and registers that ring-3 code fills on the processor (``live_guest.S``), against register writes of the
modelled guest. After each, XCR0, every byte of KVM_GET_XSAVE2 and the guest's CPUID are compared.

A nested KVM may overwrite leaf 0xD of a table it is given, and run ring 3 under another XCR0 than the guest's: so the
model takes the table that KVM_GET_CPUID2 shows, and the guest uses components of its own XCR0 alone.
"""

from __future__ import annotations

import random
from typing import Final

from fpstated.native_cpuid import NoCpuidError, native_profile
from fpu_core.config import FpuConfig, boot
from fpu_core.fpu import KVM_XSAVE_BYTES, Fpu, FpuHost
from fpu_core.permission import XcompOp, get_permitted, get_supported, request_permission
from host_agent.kvm.caps import KvmCaps, kvm_caps
from host_agent.kvm.cpuid import CpuidTable, find_entry, xss_of
from host_agent.kvm.msrs_ioctl import msr_index_list
from host_agent.kvm.supported_cpuid import supported_cpuid
from tests.differential.kvm_device import KVM_CAP_XSAVE2, KvmUnusableError, RealKvm, RealVcpu, arch_prctl
from tests.differential.live_guest import IMAGE, IMAGE_AT, KERNEL_STACK, address
from tests.differential.live_kvm_pair import MSRS, ModelVcpu, Pair
from tests.differential.report import Report, SkippedError

#: After so many rounds on one vCPU another is made: what was set once, and that it ran, cannot be taken back.
_ROUNDS_PER_VCPU: Final = 20


def run(rounds: int, seed: int) -> Report:
    """Do ``rounds`` random rounds on both. Raises ``SkippedError`` where there is no KVM to ask."""
    report, interrupted = Report("live-kvm", unit="rounds"), 0
    try:
        with RealKvm() as kvm:
            config = boot(native_profile())
            caps = _reported_caps(config, kvm)
            _compare_once(report, config, caps, kvm)
            rng = random.Random(seed)
            while report.rows < rounds:
                count = min(_ROUNDS_PER_VCPU, rounds - report.rows)
                interrupted += _one_vcpu_twice(report, config, caps, kvm, rng, count)
    except (KvmUnusableError, NoCpuidError) as error:
        raise SkippedError(str(error)) from error
    if interrupted:
        report.notes.append(f"{interrupted} vCPUs agreed when their rounds were done again")
    return report


# -- what is asked once ------------------------------------------------------------------------------------------------


def _reported_caps(config: FpuConfig, kvm: RealKvm) -> KvmCaps:
    """Our caps, without what this KVM has not got although the processor has: it says so in two places."""
    ours, table = kvm_caps(config), kvm.supported_cpuid()
    xsave = find_entry(table, 0xD, 1)
    instructions = ("XSAVEOPT", "XSAVEC", "XGETBV1", "XSAVES", "XFD")
    missing = {name for bit, name in enumerate(instructions) if xsave is None or not xsave.eax >> bit & 1}
    return KvmCaps(kvm.guest_supp(), xss_of(table) & ours.supported_xss, ours.features - missing)


def _compare_once(report: Report, config: FpuConfig, caps: KvmCaps, kvm: RealKvm) -> None:
    """Permissions of this process, leaf 0xD of KVM_GET_SUPPORTED_CPUID, the size to expect, the MSRs to save."""
    host = FpuHost(config)
    fpu = Fpu(host, "process", account=host.allocator.host)
    for op in (XcompOp.GET_SUPP, XcompOp.GET_PERM, XcompOp.GET_GUEST_PERM):
        guest = op is XcompOp.GET_GUEST_PERM
        mask = get_supported(fpu) if op is XcompOp.GET_SUPP else get_permitted(fpu, guest=guest)
        report.compare("arch_prctl", op.name, (0, mask), arch_prctl(op, None))
    for op in (XcompOp.REQ_PERM, XcompOp.REQ_GUEST_PERM):
        for feature in (*range(64), 1 << 31, 1 << 63):
            ours = request_permission(fpu, feature, guest=op is XcompOp.REQ_GUEST_PERM)
            report.compare("arch_prctl", f"{op.name} {feature}", int(ours), arch_prctl(op, feature)[0])
    report.compare(
        "KVM_X86_XCOMP_GUEST_SUPP", "a subset of ours", caps.supported_xcr0 & ~kvm_caps(config).supported_xcr0, 0
    )
    permitted = caps.supported_xcr0 & get_permitted(fpu, guest=True)
    ours_d = _leaf_0xd(supported_cpuid(config.profile, config.table, caps, xcr0=permitted))
    report.compare("KVM_GET_SUPPORTED_CPUID", "leaf 0xD", ours_d, _leaf_0xd(kvm.supported_cpuid()))
    size = max(KVM_XSAVE_BYTES, config.user_size(permitted))
    report.compare("KVM_CAP_XSAVE2", "bytes", size, kvm.check_extension(KVM_CAP_XSAVE2))
    listed = kvm.msr_index_list() & set(MSRS)
    report.compare("KVM_GET_MSR_INDEX_LIST", "XFD, XFD_ERR, XSS", list(msr_index_list(caps)), sorted(listed))


def _leaf_0xd(table: CpuidTable) -> CpuidTable:
    return tuple(entry for entry in table if entry.function == 0xD)


def _one_vcpu_twice(
    report: Report, config: FpuConfig, caps: KvmCaps, kvm: RealKvm, rng: random.Random, rounds: int
) -> bool:
    """Do a vCPU's rounds, and where they differ all of them again, from the same draws; whether they then agreed.

    In one round of some thirty thousand somebody interrupts and saves and loads the registers; what that does to
    XINUSE, the SDM leaves open.
    """
    draws, rows, differences = rng.getstate(), report.rows, len(report.differences)
    _one_vcpu(report, config, caps, kvm, rng, rounds)
    if len(report.differences) == differences:
        return False
    rng.setstate(draws)
    report.rows = rows
    del report.differences[differences:]
    _one_vcpu(report, config, caps, kvm, rng, rounds)
    return len(report.differences) == differences


def _one_vcpu(report: Report, config: FpuConfig, caps: KvmCaps, kvm: RealKvm, rng: random.Random, rounds: int) -> None:
    gates = {3: address("done"), 13: address("gp")}
    with RealVcpu(kvm, IMAGE, image_at=IMAGE_AT, gates=gates, stack=KERNEL_STACK) as real:
        pair = Pair(report, rng, real, ModelVcpu(config, caps), kvm.supported_cpuid())
        for nr in range(rounds):
            report.rows += 1
            pair.round(first=nr == 0)
