"""The invariants of the core, checked after every step wherever a test, the simulator or ``--check-invariants`` runs.

Each check is one sentence and one function; the table at the end is the list. A violation is our bug: ``check_core``
raises ``CoreBug`` naming the invariant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from fpu_core.alloc import Account
from fpu_core.context import fpregs_state_valid
from fpu_core.cpu import Cpu
from fpu_core.errors import CoreBug
from fpu_core.fpstate import MXCSR_INIT, Fpstate
from fpu_core.fpu import FPU_GUEST_PERM_LOCKED, Fpu, FpuGuest, FpuHost
from fpu_core.layout import MXCSR_OFFSET, XSAVE_EXTENDED_OFFSET, XSTATE_BV_OFFSET
from fpu_core.sched import read_pkru
from fpu_core.xfeature import (
    XCOMP_BV_COMPACTED_FORMAT,
    XFEATURE_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_PKRU,
    XFEATURE_MASK_SSE,
    XFEATURE_MASK_USER_DYNAMIC,
    for_each_set_bit,
)

#: MXCSR and its mask, within the x87 component.
_MXCSR: Final = slice(MXCSR_OFFSET, MXCSR_OFFSET + 8)
#: What of the header is neither XSTATE_BV nor XCOMP_BV.
_RESERVED: Final = slice(XSTATE_BV_OFFSET + 16, XSAVE_EXTENDED_OFFSET)


@dataclass
class CoreView:
    """What the invariants talk about, between two steps. ``guests`` pairs each vCPU with the account that pays."""

    host: FpuHost
    cpus: list[Cpu]
    fpus: list[Fpu]
    guests: list[tuple[FpuGuest, Account]]
    accounts: list[Account] = field(default_factory=list)

    @cached_property
    def payers(self) -> dict[int, tuple[Fpstate, Account]]:
        """Every container there is, active, parked and guest, by its id, with the account that would pay for it."""
        found: dict[int, tuple[Fpstate, Account]] = {}
        for fpu in self.fpus:
            found[id(fpu.fpstate)] = fpu.fpstate, fpu.account
            if fpu.task_fpstate is not None:
                found[id(fpu.task_fpstate)] = fpu.task_fpstate, fpu.account
        for guest, account in self.guests:  # behind the tasks: the one that runs a vCPU does not pay for it
            if guest.fpstate is not None:
                found[id(guest.fpstate)] = guest.fpstate, account
            if guest.buffers is not None:
                found[id(guest.buffers.user_fpu)] = guest.buffers.user_fpu, account
                found[id(guest.buffers.guest_fpu)] = guest.buffers.guest_fpu, account
        return found

    @cached_property
    def containers(self) -> list[Fpstate]:
        """Every container there is, each once."""
        return [fpstate for fpstate, _account in self.payers.values()]

    def charged(self) -> Iterator[tuple[Fpstate, Account]]:
        """Every container the allocator gave, with the account that pays, each once."""
        return (pair for pair in self.payers.values() if pair[0].is_valloc)


Violations = Iterable[str]


def xfd_cache_is_the_register(view: CoreView) -> Violations:
    """The cache of XFD says what the register holds, whenever interrupts are on."""
    for cpu in view.cpus:
        if cpu.xfd != cpu.xfd_cache:
            yield f"cpu {cpu.nr}: register {cpu.xfd:#x}, cache {cpu.xfd_cache:#x}"


def live_registers_are_owned(view: CoreView) -> Violations:
    """While a running task's registers are the truth, owner, last CPU and XFD say so."""
    for fpu in view.fpus:
        cpu = fpu.cpu
        if fpu.need_load or cpu is None or fpu.is_worker:
            continue
        if cpu.owner is not fpu or fpu.last_cpu != cpu.nr:
            yield f"{fpu.name} runs on cpu {cpu.nr}, whose registers belong to {cpu.owner}"
        if cpu.xfd != fpu.fpstate.xfd:
            yield f"{fpu.name}: XFD register {cpu.xfd:#x}, container {fpu.fpstate.xfd:#x}"


def scheduled_out_is_in_memory(view: CoreView) -> Violations:
    """A task that is not running has its state in memory."""
    for fpu in view.fpus:
        if fpu.cpu is None and not fpu.need_load and not fpu.is_worker:
            yield f"{fpu.name} is off every cpu, yet its registers are the truth"


def no_hidden_state_in_images(view: CoreView) -> Violations:
    """An image that is the truth in memory never has an XSTATE_BV bit that its XFD forbids to load (B1, B46)."""
    live = {id(fpu.fpstate) for fpu in view.fpus if not fpu.need_load}
    for fpstate in view.containers:
        if id(fpstate) not in live and not fpstate.is_confidential and fpstate.xstate_bv & fpstate.xfd:
            yield f"{fpstate}: XSTATE_BV {fpstate.xstate_bv:#x} under XFD {fpstate.xfd:#x}"


def in_use_means_parked_user(view: CoreView) -> Violations:
    """A guest container is in use exactly while a task has it active and keeps its own one parked."""
    active = {id(fpu.fpstate) for fpu in view.fpus if fpu.task_fpstate is not None}
    for fpu in view.fpus:
        if (fpu.task_fpstate is not None) != fpu.fpstate.in_use:
            yield f"{fpu.name}: parked={fpu.task_fpstate}, active={fpu.fpstate}"
    for guest, _account in view.guests:
        if guest.fpstate is not None and guest.fpstate.in_use != (id(guest.fpstate) in active):
            yield f"{guest}: in_use={guest.fpstate.in_use}"


def one_owner_each(view: CoreView) -> Violations:
    """No two vCPUs and no two tasks share a container."""
    own: dict[int, object] = {}
    holders = [(guest.fpstate, guest) for guest, _account in view.guests] + [
        (fpu.task_fpstate if fpu.task_fpstate is not None else fpu.fpstate, fpu) for fpu in view.fpus
    ]
    for fpstate, holder in holders:
        if fpstate is not None and own.setdefault(id(fpstate), holder) is not holder:
            yield f"{fpstate} belongs to {own[id(fpstate)]} and to {holder}"


def ledger_balances(view: CoreView) -> Violations:
    """What every account says is used is what live containers take, to the byte."""
    used: dict[int, int] = {}
    for fpstate, account in view.charged():
        _charge(used, account, fpstate.allocated_bytes)
    for account in view.accounts:
        if account.used_bytes != used.get(id(account), 0):
            yield f"account {account.name} says {account.used_bytes} bytes, containers take {used.get(id(account), 0)}"


def _charge(used: dict[int, int], account: Account, size_bytes: int) -> None:
    line: Account | None = account
    while line is not None:
        used[id(line)] = used.get(id(line), 0) + size_bytes
        line = line.parent


def room_for_every_feature(view: CoreView) -> Violations:
    """A container is as large as its features need, and its memory as large as it says."""
    config = view.host.config
    if not config.xsave:
        return
    for fpstate in view.containers:
        if fpstate.size < config.kernel_size(fpstate.xfeatures) or len(fpstate.regs) != fpstate.size:
            yield f"{fpstate}: {len(fpstate.regs)} bytes, {config.kernel_size(fpstate.xfeatures)} needed"


def headers_are_loadable(view: CoreView) -> Violations:
    """XSTATE_BV is within XCOMP_BV on compacted hosts, reserved header bytes and MXCSR's reserved bits are clear."""
    config = view.host.config
    compacted, mxcsr_mask = config.compacted, config.mxcsr_mask
    for fpstate in view.containers:
        if compacted:
            layout = fpstate.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT
            if not fpstate.xcomp_bv & XCOMP_BV_COMPACTED_FORMAT or fpstate.xstate_bv & ~layout:
                yield f"{fpstate}: XSTATE_BV {fpstate.xstate_bv:#x}, XCOMP_BV {fpstate.xcomp_bv:#x}"
        if fpstate.regs[_RESERVED].strip(b"\0"):
            yield f"{fpstate}: reserved bytes of the header are not zero"
        if fpstate.xstate_bv & XFEATURE_MASK_FPSSE:
            mxcsr = int.from_bytes(fpstate.regs[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")
            if mxcsr & ~mxcsr_mask:
                yield f"{fpstate}: MXCSR {mxcsr:#x}"


def no_dynamic_feature_without_permission(view: CoreView) -> Violations:
    """A task's own container holds a dynamic feature only with the process's permission, and never a guest-only one."""
    for fpu in view.fpus:
        own = fpu.task_fpstate if fpu.task_fpstate is not None else fpu.fpstate
        dynamic = own.xfeatures & XFEATURE_MASK_USER_DYNAMIC
        if dynamic & ~fpu.leader.perm.state_perm:
            yield f"{fpu.name} holds {dynamic:#x}, permitted {fpu.leader.perm.state_perm:#x}"
        if own.xfeatures & view.host.config.rules.guest_supervisor:
            yield f"{fpu.name} holds a guest-only feature"


def xfd_err_is_the_guests(view: CoreView) -> Violations:
    """XFD_ERR is zero outside the guest window."""
    for cpu in view.cpus:
        if cpu.xfd_err:
            yield f"cpu {cpu.nr}: XFD_ERR {cpu.xfd_err:#x}"


def no_request_outside_the_loop(view: CoreView) -> Violations:
    """A growth request lives between the intercept and the swap-out only."""
    for guest, _account in view.guests:
        if guest.realloc_request is not None and (guest.fpstate is None or not guest.fpstate.in_use):
            yield f"{guest}"


def guest_features_are_the_containers(view: CoreView) -> Violations:
    """What the vCPU may use is what its container holds (B18)."""
    for guest, _account in view.guests:
        if guest.fpstate is not None and guest.xfeatures != guest.fpstate.xfeatures:
            yield f"{guest}: {guest.xfeatures:#x}, container {guest.fpstate.xfeatures:#x}"


def no_foreign_register(view: CoreView) -> Violations:
    """Registers a running task's container has no room for are in their init state (B45)."""
    for fpu in view.fpus:
        cpu = fpu.cpu
        if cpu is None or fpu.need_load or fpu.fpstate.is_confidential:
            continue
        foreign = cpu.xinuse & ~cpu.xfd & ~fpu.fpstate.xfeatures & view.host.config.kernel.max_features
        if foreign:
            yield f"{fpu.name} on cpu {cpu.nr} could see {foreign:#x} of somebody else"


def valid_registers_are_the_image(view: CoreView) -> Violations:
    """Registers that a task may take up again without a restore hold exactly its image, under its XFD (B4, B44)."""
    for fpu in view.fpus:
        if not fpu.need_load or fpu.fpstate.is_confidential:
            continue
        for cpu in view.cpus:
            if not fpregs_state_valid(fpu, cpu):
                continue
            if cpu.xfd != fpu.fpstate.xfd:
                yield f"{fpu.name} would go on under XFD {cpu.xfd:#x} on cpu {cpu.nr}"
            for nr in _differing(cpu, fpu.fpstate):
                yield f"{fpu.name} would go on with a stale component {nr} on cpu {cpu.nr}"


def _differing(cpu: Cpu, fpstate: Fpstate) -> Iterator[int]:
    """Components of which the registers and the image disagree; PKRU is switched beside the image."""
    config = cpu.config
    compacted = bool(fpstate.xcomp_bv & XCOMP_BV_COMPACTED_FORMAT)
    layout = fpstate.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT if compacted else fpstate.xfeatures
    in_use = (cpu.xinuse | fpstate.xstate_bv) & layout & ~cpu.xfd & ~XFEATURE_MASK_PKRU
    if not in_use:
        return
    offsets = config.table.offsets(layout, compacted=compacted)
    init = Cpu(0, config)
    for nr in for_each_set_bit(in_use):
        held, size = bytearray(cpu.read_register(nr)), config.table.size_bytes(nr)
        there = fpstate.regs[offsets[nr] : offsets[nr] + size]
        image = there if fpstate.xstate_bv >> nr & 1 else bytearray(init.read_register(nr))
        if nr == XFEATURE_FP:  # MXCSR lies within x87's bytes, and goes with SSE
            held[_MXCSR] = image[_MXCSR] = bytes(8)
        if held != image:
            yield nr


def sse_marks_mxcsr(view: CoreView) -> Violations:
    """MXCSR away from its init value counts as SSE state in use, or a save would lose it."""
    for cpu in view.cpus:
        if cpu.mxcsr != MXCSR_INIT and not cpu.xinuse & XFEATURE_MASK_SSE:
            yield f"cpu {cpu.nr}: MXCSR {cpu.mxcsr:#x}"


def pkru_is_the_running_tasks(view: CoreView) -> Violations:
    """Outside the guest window the PKRU register is the running task's: it is switched at once, not lazily (B25)."""
    for cpu in view.cpus:
        if cpu.current is not None and read_pkru(cpu) != cpu.current.pkru:
            yield f"cpu {cpu.nr}: PKRU {read_pkru(cpu):#x}, {cpu.current.name} has {cpu.current.pkru:#x}"


def workers_own_nothing(view: CoreView) -> Violations:
    """A kernel thread or user worker is never saved and never restored: no registers are its own (B24)."""
    for fpu in view.fpus:
        if fpu.is_worker and (not fpu.need_load or fpu.last_cpu != -1 or fpu.fpstate.xstate_bv):
            yield f"{fpu.name} has registers: {fpu}, last cpu {fpu.last_cpu}"
    for cpu in view.cpus:
        if cpu.owner is not None and cpu.owner.is_worker:
            yield f"cpu {cpu.nr} belongs to {cpu.owner.name}"


def offline_cpus_have_nobody(view: CoreView) -> Violations:
    """A CPU that is offline runs no task, and the kernel does not use its FPU (B31)."""
    for cpu in view.cpus:
        if not cpu.online and (cpu.current is not None or cpu.kernel_fpu_allowed):
            yield f"cpu {cpu.nr} is offline and runs {cpu.current}"


def permission_sizes_follow(view: CoreView) -> Violations:
    """The sizes in a permission record are those of what it permits (B5 to B7).

    Supervisor features count although the rules of 6.12 do not store them.
    """
    config = view.host.config
    if not config.xsave:
        return
    task_default, guest_default = config.kernel.default_features, config.guest_default_features
    sizes: dict[int, tuple[int, int]] = {}  # many tasks have few masks
    for fpu in view.fpus:
        for perm, default in ((fpu.perm, task_default), (fpu.guest_perm, guest_default)):
            mask = (perm.state_perm & ~FPU_GUEST_PERM_LOCKED) | default
            expected = sizes.get(mask)
            if expected is None:
                expected = sizes[mask] = (config.kernel_size(mask), config.user_size(mask))
            if perm.state_size != expected[0] or perm.user_state_size != expected[1]:
                yield f"{fpu.name}: {perm}, {expected} expected"


def init_image_is_pristine(view: CoreView) -> Violations:
    """The init image holds default features only, all in their init state, with every dynamic feature disabled (B9)."""
    init, config = view.host.init_fpstate, view.host.config
    if init.xfeatures & XFEATURE_MASK_USER_DYNAMIC or init.xstate_bv or init.xfd != config.init_xfd:
        yield f"{init}: XSTATE_BV {init.xstate_bv:#x}"
    if config.caps.FXSR and int.from_bytes(init.regs[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little") != MXCSR_INIT:
        yield f"{init}: MXCSR"


Invariant = Callable[[CoreView], Violations]

INVARIANTS: tuple[Invariant, ...] = (
    xfd_cache_is_the_register,
    live_registers_are_owned,
    scheduled_out_is_in_memory,
    no_hidden_state_in_images,
    in_use_means_parked_user,
    one_owner_each,
    ledger_balances,
    room_for_every_feature,
    headers_are_loadable,
    no_dynamic_feature_without_permission,
    xfd_err_is_the_guests,
    no_request_outside_the_loop,
    guest_features_are_the_containers,
    no_foreign_register,
    valid_registers_are_the_image,
    sse_marks_mxcsr,
    pkru_is_the_running_tasks,
    workers_own_nothing,
    offline_cpus_have_nobody,
    permission_sizes_follow,
    init_image_is_pristine,
)


def check_core(view: CoreView) -> None:
    """Raise ``CoreBug`` naming the first invariant that does not hold."""
    for invariant in INVARIANTS:
        for violation in invariant(view):
            raise CoreBug(f"{invariant.__name__}: {violation}")


@dataclass(slots=True)
class PermissionHistory:
    """Permissions only grow and the lock is sticky, except over exec: that needs a memory of the step before."""

    rules_lose_supervisor: bool
    user_supported: int
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    def check(self, fpus: Iterable[Fpu]) -> None:
        """Compare with the last step; raises ``CoreBug``."""
        keep = self.user_supported | FPU_GUEST_PERM_LOCKED if self.rules_lose_supervisor else ~0
        for fpu in fpus:
            now = (fpu.perm.state_perm, fpu.guest_perm.state_perm)
            before = self._seen.get(fpu.name, (0, 0))
            if now == before:
                continue
            if any(old & keep & ~new for old, new in zip(before, now, strict=True)):
                raise CoreBug(f"permissions_only_grow: {fpu.name} had {before}, has {now}")
            self._seen[fpu.name] = now

    def forget(self, fpu: Fpu) -> None:
        """``fpu`` went through exec, or is gone."""
        self._seen.pop(fpu.name, None)
