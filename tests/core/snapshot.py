"""Everything a world holds, to compare one history with another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpu_core.fpstate import Fpstate
from fpu_core.fpu import Fpu

if TYPE_CHECKING:
    from tests.core.world import World


def snapshot(world: World) -> dict[str, object]:
    """Everything a world holds but counters and what tests put beside it."""
    found: dict[str, object] = {}
    for cpu in world.cpus:
        owner = cpu.owner.name if cpu.owner is not None else None
        current = cpu.current.name if cpu.current is not None else None
        found[f"cpu {cpu.nr}"] = (cpu.xcr0, cpu.xss, cpu.xfd, cpu.xfd_cache, cpu.xfd_err, cpu.cr0_ts, owner, current)
        found[f"cpu {cpu.nr} registers"] = (cpu.observable(), cpu.mxcsr, cpu.xinuse)
    for name, task in world.tasks.items():
        fpu = task.fpu
        where = fpu.cpu.nr if fpu.cpu is not None else None
        found[name] = (fpu.need_load, fpu.last_cpu, fpu.pkru, where, _perm(fpu), _container(fpu.fpstate))
        found[f"{name} own"] = _container(fpu.task_fpstate)
    for name, guest in world.guests.items():
        vcpu, fpu_guest = guest.vcpu, guest.vcpu.guest
        runner = vcpu.fpu.name if vcpu.fpu is not None else None
        found[name] = (vcpu.state, vcpu.xcr0, vcpu.pkru, vcpu.nm_intercept, vcpu.xfd_passthrough, runner)
        found[f"{name} guest"] = (
            fpu_guest.xfeatures,
            fpu_guest.xfd_err,
            fpu_guest.uabi_size,
            fpu_guest.realloc_request,
        )
        found[f"{name} container"] = _container(fpu_guest.fpstate)
        if fpu_guest.buffers is not None:
            found[f"{name} user_fpu"] = _container(fpu_guest.buffers.user_fpu)
            found[f"{name} guest_fpu"] = _container(fpu_guest.buffers.guest_fpu)
    for account in world.view().accounts:
        found[f"account {account.name}"] = (account.limit_bytes, account.used_bytes)
    return found


def _perm(fpu: Fpu) -> tuple[object, ...]:
    return tuple((each.state_perm, each.state_size, each.user_state_size) for each in (fpu.perm, fpu.guest_perm))


def _container(fpstate: Fpstate | None) -> object:
    if fpstate is None:
        return None
    flags = (fpstate.is_valloc, fpstate.is_guest, fpstate.is_confidential, fpstate.in_use)
    return (
        fpstate.size,
        fpstate.user_size,
        fpstate.xfeatures,
        fpstate.user_xfeatures,
        fpstate.xfd,
        flags,
        fpstate.image(),
    )
