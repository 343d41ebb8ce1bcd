"""One number that says everything: SHA-256 over a canonical form of what a host knows."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Iterator, Mapping

from fpu_core.config import FpuConfig
from fpu_core.cpu import Cpu
from fpu_core.fpstate import Fpstate
from fpu_core.fpu import Fpu
from fpu_core.xfeature import XCOMP_BV_COMPACTED_FORMAT, XFEATURE_PKRU
from host_agent.kvm.vcpu import Vcpu
from host_agent.migrations import MigrationRecord
from host_agent.state import HostState, VcpuSide, VmRecord


def digest(state: HostState) -> str:
    """Return the digest in hexadecimal."""
    hasher = hashlib.sha256()
    for line in describe(state):
        hasher.update(line.encode())
        hasher.update(b"\n")
    return hasher.hexdigest()


def describe(state: HostState) -> Iterator[str]:
    """Yield the canonical form, a line an object; two hosts that differ differ in some line."""
    yield _line("host", state.now_ns, state.revision, state.serial, state.epoch, state.draining, state.config)
    yield _line("ids", state.first_boot_id)
    yield _line("ended", dict(state.ended_sessions), dict(state.fenced_sessions), sorted(state.requests))
    yield _line("ledger", state.allocator.host.limit_bytes, state.allocator.host.used_bytes)
    for vm in state.vms.values():
        yield from _vm(state, vm)
    for (source, rules), platform in state.platforms.items():
        for cpu in platform.cpus:
            yield _line("cpu", hashlib.sha256(source.encode()).hexdigest(), rules, *_cpu(cpu))
    yield from _hands(state)
    for record in (*state.exits.values(), *state.resolved_exits.values()):
        yield _line("exit", dataclasses.asdict(record))
    for decision in state.audit.decisions.values():
        yield _line("decision", dataclasses.asdict(decision))
    yield from _migrations(state)
    for fault in state.faults.armed.values():
        yield _line("fault", dataclasses.asdict(fault))


def _hands(state: HostState) -> Iterator[str]:
    """Who holds what: sessions and controls."""
    for session in state.sessions.values():
        yield _line("session", session.name, session.epoch, session.client_name, session.principal, session.explicit)
        yield _line("  lease", session.expires_ns, session.lease_ns)
        yield _line("  of", *session.vcpus, *session.directives.values())
    for control in state.controls.values():
        yield _line("control", control.name, control.scope, control.epoch, control.controller, control.principal)
        yield _line("  lease", control.expires_ns, control.lease_ns)


def _migrations(state: HostState) -> Iterator[str]:
    for migration in state.migrations.values():
        yield _line("migration", *_migration(migration))
        if migration.staged is not None:
            yield from _vm(state, migration.staged)
    for moved in state.moved.values():
        yield _line("moved", moved)


def _migration(record: MigrationRecord) -> Iterator[object]:
    yield from (record.name, record.uid, record.vm, record.vm_uid, record.role, record.state, record.ownership_epoch)
    yield from (record.source_host, record.target, record.proofs, record.begun_ns, record.create_unix_ns)
    yield from (record.deadline_ns, record.reason, record.image, record.sha256, record.reserved_bytes, record.ticket)


def _vm(state: HostState, vm: VmRecord) -> Iterator[str]:
    yield _line("vm", vm.name, vm.uid, vm.profile, vm.kernel_rules, vm.allocation_policy, vm.labels, vm.revision)
    yield _line("  made", vm.owner_pid, vm.owner_name, vm.cpuid_dump, vm.kvm.has_protected_state, vm.hidden_at_reset)
    yield _line("  epoch", vm.ownership_epoch)
    yield _line("  ledger", vm.kvm.account.limit_bytes, vm.kvm.account.used_bytes, vm.kvm.cpuid.fingerprint)
    for task in vm.tasks.values():
        yield _line("  task", task.id, task.uid, task.home_cpu, task.vcpu.index if task.vcpu else None, *_fpu(task.fpu))
        for frame in task.frames:
            yield _line("    frame", frame.address, frame.sp, frame.memory.base, _bytes(frame.memory.data))
    for vcpu in vm.kvm.vcpus.values():
        yield _line("  vcpu", *_vcpu(state, vcpu))


def _vcpu(state: HostState, vcpu: Vcpu) -> Iterator[object]:
    yield from (vcpu.index, vcpu.state.name, vcpu.incarnation)
    yield from (vcpu.xcr0, vcpu.xss, vcpu.pkru, vcpu.cr4_written, vcpu.cpuid.fingerprint, vcpu.has_run)
    yield from (vcpu.nm_intercept, vcpu.xfd_passthrough, vcpu.guest.xfd_err, vcpu.guest.xfeatures, vcpu.guest.uabi_size)
    config = vcpu.vm.host.config
    yield _fpstate(vcpu.guest.fpstate, config)
    if vcpu.guest.buffers is not None:
        yield from (_fpstate(vcpu.guest.buffers.user_fpu, config), _fpstate(vcpu.guest.buffers.guest_fpu, config))
    # Whether anybody has asked yet makes no difference: a side that is not there is one where nothing has happened.
    side = vcpu.agent if isinstance(vcpu.agent, VcpuSide) else VcpuSide(uid=state.vcpu_uid(vcpu))
    yield (side.uid, side.task, side.next_seq, side.session.name if side.session else "", side.last_session)
    yield from side.outcomes.values()
    yield from side.directives.values()


def _fpu(fpu: Fpu) -> Iterator[object]:
    yield from (fpu.name, fpu.need_load, fpu.last_cpu, fpu.pkru, fpu.cpu.nr if fpu.cpu else None)
    yield from (fpu.perm, fpu.guest_perm, fpu.kind.name, fpu.sas_ss_size, fpu.avx512_timestamp)
    yield _fpstate(fpu.fpstate, fpu.host.config)
    yield _fpstate(fpu.task_fpstate, fpu.host.config)


def _cpu(cpu: Cpu) -> Iterator[object]:
    yield from (
        cpu.nr,
        cpu.xcr0,
        cpu.xfd,
        cpu.xfd_cache,
        cpu.xfd_err,
        cpu.xinuse,
        cpu.mxcsr,
        cpu.kernel_fpu_allowed,
        cpu.online,
    )
    yield from (cpu.owner.name if cpu.owner else None, cpu.current.name if cpu.current else None)
    for nr, raw in sorted(cpu.regs.items()):
        if cpu.xinuse >> nr & 1:
            yield (nr, _bytes(raw))


def _fpstate(fpstate: Fpstate | None, config: FpuConfig) -> object:
    if fpstate is None:
        return None
    return (
        (fpstate.size, fpstate.user_size, fpstate.xfeatures, fpstate.user_xfeatures, fpstate.xfd),
        (fpstate.is_valloc, fpstate.is_guest, fpstate.is_confidential, fpstate.in_use),
        _bytes(_image(fpstate, config)),
    )


def _image(fpstate: Fpstate, config: FpuConfig) -> bytearray:
    """The image without its copy of PKRU, which nobody ever reads: a swap that elides its save leaves an old one."""
    image = bytearray(fpstate.image())
    if config.has_pkru:
        layout = fpstate.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT if config.compacted else fpstate.xfeatures
        at = config.table.offset(layout, XFEATURE_PKRU, compacted=config.compacted)
        size = config.table.size_bytes(XFEATURE_PKRU)
        image[at : at + size] = bytes(size)
    return image


def _bytes(raw: bytes | bytearray) -> str:
    return hashlib.sha256(raw).hexdigest()


def _line(*parts: object) -> str:
    return json.dumps([_plain(part) for part in parts], sort_keys=True, separators=(",", ":"))


def _plain(value: object) -> object:
    """Values as JSON has them; enums by name, sets sorted, bytes by digest."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, int):
        return value
    if isinstance(value, bytes | bytearray):
        return _bytes(value)
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    if isinstance(value, frozenset | set):
        return sorted(str(_plain(item)) for item in value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"the digest does not know {type(value).__name__}")
