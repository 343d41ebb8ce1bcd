"""A plan's faults for a real kernel: a shell script over debugfs, or calls of the kernel's own failcmd.sh.

What a kernel's fault injection can do is exported exactly; what it cannot, or would do differently, is a warning. The
script writes every attribute, since the kernel's defaults never fire (probability 0), or once (times 1), and leave
alone what a container is made of (min-order 1, ignore-gfp-wait Y, ignore-gfp-highmem Y).

Source: Documentation/fault-injection/fault-injection.rst; include/linux/fault-inject.h, FAULT_ATTR_INITIALIZER;
mm/fail_page_alloc.c; mm/failslab.c; lib/fault-inject-usercopy.c; block/blk-core.c, should_fail_bio();
mm/vmalloc.c, __vmalloc_area_node() (order-0 pages that may lie in high memory, __GFP_NOWARN); mm/util.c, memdup_user()
(__GFP_NOWARN).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.draw import PPM
from fault_lab.injection.hit import Selector, Window
from fault_lab.injection.table import ArmedFault
from fault_lab.linux_script import debugfs_script, failcmd_script
from fault_lab.plan.resolve import PlannedArm, planned_faults

_PERCENT: Final = PPM // 100
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability of the kernel: what ``space`` counts, the config option it needs, what it has beside the rest."""

    name: str
    config: str
    space_unit: int
    has_gfp: bool = False
    has_order: bool = False
    #: A slab cache that is marked for it.
    cache: str = ""
    note: str = ""


_SILENT: Final = "it is asked for with __GFP_NOWARN: the kernel logs nothing when it fails, whatever verbose is"
_PAGES: Final = Capability(
    "fail_page_alloc", "CONFIG_FAIL_PAGE_ALLOC", _PAGE, has_gfp=True, has_order=True, note=_SILENT
)
_SLAB: Final = Capability("failslab", "CONFIG_FAILSLAB", 1, has_gfp=True, note=_SILENT)
_VCPU_CACHE: Final = Capability("failslab", "CONFIG_FAILSLAB", 1, has_gfp=True, cache="kvm_vcpu")
_USERCOPY: Final = Capability("fail_usercopy", "CONFIG_FAULT_INJECTION_USERCOPY", 0)
_BLOCK: Final = Capability("fail_make_request", "CONFIG_FAIL_MAKE_REQUEST", 1, note="set DEVICE to the block device")

#: What stands for a point and an errno in a kernel.
CAPABILITIES: Final[dict[tuple[str, int], Capability]] = {
    ("fpstate.guest.alloc", errno.ENOMEM): _PAGES,
    ("fpstate.realloc.alloc", errno.ENOMEM): _PAGES,
    ("fpstate.task.realloc.alloc", errno.ENOMEM): _PAGES,
    ("kvm.vm.alloc", errno.ENOMEM): _PAGES,
    ("kvm.vcpu.alloc", errno.ENOMEM): _VCPU_CACHE,
    ("kvm.set_cpuid.copy", errno.ENOMEM): _SLAB,
    ("kvm.set_cpuid.copy", errno.EFAULT): _USERCOPY,
    ("kvm.set_xsave.copy", errno.ENOMEM): _SLAB,
    ("kvm.set_xsave.copy", errno.EFAULT): _USERCOPY,
    ("kvm.set_xcrs.copy", errno.ENOMEM): _SLAB,
    ("kvm.set_xcrs.copy", errno.EFAULT): _USERCOPY,
    ("kvm.set_msrs.copy", errno.ENOMEM): _SLAB,
    ("kvm.set_msrs.copy", errno.EFAULT): _USERCOPY,
    ("journal.write", errno.EIO): _BLOCK,
}


@dataclass(slots=True)
class KernelFault:
    """One fault as a kernel has it: the files of its capability and what goes into them, in the order of writing."""

    name: str
    capability: Capability
    settings: dict[str, str]
    fail_nth: int = 0


@dataclass(slots=True)
class LinuxExport:
    """What came of a plan: the faults that a kernel can have, and a sentence for whatever it cannot have, or not so."""

    plan: str
    faults: list[KernelFault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def script(self, *, failcmd: bool = False) -> str:
        """The script; the warnings are in it as comments."""
        return (failcmd_script if failcmd else debugfs_script)(self)


def export_linux(plan: plan_pb2.Plan, *, only: str = "") -> LinuxExport:
    """Export a checked plan; ``only`` names one fault, since a kernel has one set of attributes a capability.

    Raises ``ValueError`` where there is no fault of that name.
    """
    planned = [each for each in planned_faults(plan, plan.seed) if only in ("", each.fault.name)]
    if only and not planned:
        raise ValueError(f"there is no fault {only!r} in {plan.name}")
    export = LinuxExport(plan.name)
    for each in planned:
        _add(export, each)
    if any(each.fault.point == "fpstate.realloc.alloc" for each in planned):
        export.warnings.append(
            "in a mainline kernel a guest's container grows at KVM_SET_CPUID2, not at a write of XFD or XCR0: "
            "that is where the failure shows, as EFAULT"
        )
    return export


def _add(export: LinuxExport, planned: PlannedArm) -> None:
    fault = planned.fault
    number = fault.action.errno if isinstance(fault.action, FailErrno) else 0
    capability = CAPABILITIES.get((fault.point, number))
    if capability is None:
        what = errno.errorcode[number] if number else type(fault.action).__name__
        export.warnings.append(f"{fault.name}: a kernel has nothing that makes {fault.point} do {what}; left out")
        return
    taken = next((each.name for each in export.faults if each.capability.name == capability.name), None)
    if taken is not None:
        export.warnings.append(
            f"{fault.name}: {capability.name} has one set of attributes, and {taken} has it; left out: "
            f"export it alone with --fault {fault.name}"
        )
        return
    attributes = fault.attributes
    export.warnings += [f"{fault.name}: {text}" for text in _warnings(planned, capability)]
    export.faults.append(KernelFault(fault.name, capability, _settings(attributes, capability), attributes.fail_nth))


# -- attributes --------------------------------------------------------------------------------------------------------


def _settings(attributes: FaultAttributes, capability: Capability) -> dict[str, str]:
    """Every file of the capability; the probability comes last, since it arms."""
    made = {
        "interval": str(attributes.interval),
        "times": str(attributes.times),
        "space": str(-(-attributes.space // capability.space_unit) if capability.space_unit else attributes.space),
        "verbose": str(attributes.verbose),
        "verbose_ratelimit_interval_ms": str(attributes.verbose_ratelimit_interval_ms),
        "verbose_ratelimit_burst": str(attributes.verbose_ratelimit_burst),
        "task-filter": "Y",
    }
    if capability.has_gfp:
        made["ignore-gfp-wait"] = _flag(attributes.ignore_gfp_wait)
    if capability.has_order:
        made["ignore-gfp-highmem"] = _flag(attributes.ignore_gfp_highmem)
        made["min-order"] = str(attributes.min_order)
    if capability.name == "failslab":
        made["cache-filter"] = _flag(bool(capability.cache))
    # Only the task's fail-nth is to decide; it does whatever the probability is.
    made["probability"] = "0" if attributes.fail_nth else str(-(-attributes.probability_ppm // _PERCENT))
    return made


def _flag(value: bool) -> str:  # noqa: FBT001 -- Y or N
    return "Y" if value else "N"


def _warnings(planned: PlannedArm, capability: Capability) -> list[str]:
    fault, attributes = planned.fault, planned.fault.attributes
    return [
        *_not_there(fault, planned),
        *_chance(attributes),
        *_masked(attributes, capability),
        *([capability.note] if capability.note else []),
    ]


def _not_there(fault: ArmedFault, planned: PlannedArm) -> list[str]:
    """What a kernel has no word for."""
    found: list[str] = []
    if fault.selector != Selector():
        found.append("a kernel knows no VM, vCPU, trigger or component: the fault is for every task that is marked")
    if not fault.attributes.task_filter:
        found.append("the script sets task-filter, so that only the command and what it starts is hit")
    if fault.window != Window() or fault.gate_ppm != PPM or planned.phases != {"chaos"}:
        found.append("windows, gates and phases are left out: the fault is armed as long as the command runs")
    if fault.attributes.require or fault.attributes.reject:
        found.append(
            "require and reject name events and commands of a host; a kernel wants addresses: set require-start and "
            "require-end yourself (needs CONFIG_FAULT_INJECTION_STACKTRACE_FILTER, on x86-64 since 6.3)"
        )
    return found


def _chance(attributes: FaultAttributes) -> list[str]:
    """Where the counts or the chances are others."""
    found: list[str] = []
    percent, rest = divmod(attributes.probability_ppm, _PERCENT)
    if attributes.fail_nth:
        found.append(
            "fail-nth counts in one task, over all capabilities, from before exec on: vCPU threads and children have "
            "none; read /proc/<pid>/fail-nth to see whether it was used"
        )
    elif rest:
        found.append(f"a kernel's probability is whole percents: {percent + 1} for {attributes.probability_ppm} ppm")
    elif 0 < attributes.probability_ppm < PPM:
        found.append("a kernel's chance has no seed: other hits will fail than in the plan")
    if attributes.space:
        found.append("space is counted in what the capability counts: pages for fail_page_alloc, bytes for failslab")
    if attributes.should_fail_order != "6.3":
        found.append(f"the order of {attributes.should_fail_order} holds in kernels before 6.3 alone")
    return found


def _masked(attributes: FaultAttributes, capability: Capability) -> list[str]:
    """What of the plan's own attributes keeps a kernel from ever firing."""
    found: list[str] = []
    if capability.has_gfp and attributes.ignore_gfp_wait:
        found.append("ignore-gfp-wait Y masks it: the allocation may sleep")
    if capability.has_order and attributes.ignore_gfp_highmem:
        found.append("ignore-gfp-highmem Y masks it: pages of vzalloc() may lie in high memory")
    if capability.has_order and attributes.min_order:
        found.append(f"min-order {attributes.min_order} masks it: vzalloc() takes pages one by one, of order 0")
    if not attributes.fail_nth and attributes.times == 0:
        found.append("times 0: it never fires")
    if not attributes.fail_nth and attributes.probability_ppm == 0:
        found.append("probability 0: it never fires")
    return found
