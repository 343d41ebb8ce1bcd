"""The image of a VM: everything of it that another host needs to go on with it, as values.

What KVM has an ioctl for is here as that ioctl gives it (KVM_GET_XSAVE2, KVM_GET_XCRS, KVM_GET_MSRS, KVM_GET_CPUID2's
tables); beside it what no ioctl gives. Not here is what belongs to the source: the VMM's threads and its process id,
sessions, controls, revisions, and exits that are settled. Names inside are not full, so that a VM can get another one.
The bytes of an image: ``host_agent.image_form``.
"""

from __future__ import annotations

from dataclasses import dataclass

from host_agent.compat import VmRequirements
from host_agent.events import DoneOutcome, GoneOutcome, InjectOutcome, PendingOutcome, RejectedOutcome
from host_agent.exits import Decision, DecisionKind, ExitCause, ExitState
from host_agent.kvm.cpuid import CpuidEntry
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.outcome import Trigger

#: What of a vCPU can be kept: an event that was blocked has not been taken.
KeptOutcome = DoneOutcome | InjectOutcome | PendingOutcome | RejectedOutcome | GoneOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationImage:
    """Which migration an image is of. ``staged`` is what its target shows once it has staged."""

    name: str
    uid: str
    target: str
    staged: str
    committed_sha256: str
    aborted_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeImage:
    """What became of event ``seq``. The vCPU's and the exit's name in it are empty."""

    seq: int
    kind: KeptOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class WinnerImage:
    """The decision of one generation of an exit."""

    generation: int
    decided_by: str
    decision: Decision
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitImage:
    """The exit a vCPU is parked on. Times are what was left, in nanoseconds, when the image was made."""

    seq: int
    trigger: Trigger
    old_xcr0: int
    new_xcr0: int
    old_xfd: int
    new_xfd: int
    cause: ExitCause
    errno: int
    xfeatures: int
    bytes_needed: int
    attempt: int
    generation: int
    state: ExitState
    expires_in_ns: int | None
    retry_in_ns: int | None
    decision: DecisionKind | None
    decided_by: str
    winners: tuple[WinnerImage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentImage:
    """The bytes of a component that is in use and that KVM_GET_XSAVE2 leaves out."""

    xfeature: int
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuImage:
    """One vCPU. Masks are of xfeatures; ``cpuid`` is a place in the VM's list."""

    index: int
    uid: str
    incarnation: int
    state: VcpuState
    has_run: bool
    cpuid: int
    #: Components that the container has room for, and those that are in use.
    xfeatures: int
    xstate_bv: int
    xsave: bytes
    xcrs: tuple[tuple[int, int], ...]
    msrs: tuple[tuple[int, int], ...]
    #: MXCSR counts in the standard format whatever XSTATE_BV says; PKRU is kept beside the image.
    mxcsr: int
    pkru: int
    beyond: tuple[ComponentImage, ...]
    cr4: int | None
    nm_intercept: bool
    xfd_passthrough: bool
    task: str
    next_seq: int
    outcomes: tuple[OutcomeImage, ...]
    exit: ExitImage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmImage:
    """The whole. ``cpuid`` is the VM's own, for vCPUs to come; permissions are the dynamic features among them."""

    vm: str
    uid: str
    ownership_epoch: int
    source_host: str
    migration: MigrationImage | None
    requirements: VmRequirements
    kernel_rules: str
    allocation_policy: str
    has_protected_state: bool
    byte_limit: int | None
    owner_name: str
    labels: dict[str, str]
    guest_permission: int
    host_permission: int
    #: Components that its guests' CPUID will not have after the next RESET.
    hidden_at_reset: int
    cpuids: tuple[tuple[CpuidEntry, ...], ...]
    cpuid: int
    cpuid_given: bool
    vcpus: tuple[VcpuImage, ...]
