"""Each invariant of the core notices what it is there for: one thing is broken by hand, and its name is reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fpu_core.errors import CoreBug
from fpu_core.fpu import ReallocRequest, TaskKind
from fpu_core.invariants import INVARIANTS
from fpu_core.realloc import Reallocated, realloc_task_fpstate
from fpu_core.sched import switch_to
from fpu_core.swap import swap_in
from tests.core.rig import Rig, container

TILE_DATA = 1 << 18


def _entered() -> Rig:
    rig = Rig.create()
    swap_in(rig.fpu, rig.guest())
    return rig


def _cache(rig: Rig) -> None:
    rig.cpu.xfd_cache = TILE_DATA


def _owner(rig: Rig) -> None:
    rig.cpu.owner = None


def _last_cpu(rig: Rig) -> None:
    rig.fpu.last_cpu = 1


def _register(rig: Rig) -> None:
    rig.cpu.xfd = rig.cpu.xfd_cache = TILE_DATA


def _off_cpu(rig: Rig) -> None:
    switch_to(rig.cpu, None)
    rig.fpu.need_load = False


def _hidden_state(rig: Rig) -> None:
    parked = rig.fpu.task_fpstate
    assert parked is not None
    parked.xcomp_bv |= TILE_DATA
    parked.xstate_bv |= TILE_DATA


def _in_use(rig: Rig) -> None:
    container(rig.guests[0]).in_use = False


def _shared(rig: Rig) -> None:
    other = rig.guest()
    other.fpstate = rig.guests[0].fpstate


def _ledger(rig: Rig) -> None:
    rig.fpu.account.used_bytes += 1


def _too_small(rig: Rig) -> None:
    container(rig.guests[0]).xfeatures |= TILE_DATA


def _short_memory(rig: Rig) -> None:
    del container(rig.guests[0]).regs[-1:]


def _long_memory(rig: Rig) -> None:
    container(rig.guests[0]).regs.append(0)


def _bv_outside_layout(rig: Rig) -> None:
    container(rig.guests[0]).xstate_bv = 1 << 19


def _no_compaction_bit(rig: Rig) -> None:
    container(rig.guests[0]).xcomp_bv = 0


def _reserved_byte(rig: Rig) -> None:
    container(rig.guests[0]).regs[575] = 1


def _first_reserved_byte(rig: Rig) -> None:
    container(rig.guests[0]).regs[528] = 1


def _mxcsr(rig: Rig) -> None:
    fpstate = container(rig.guests[0])
    fpstate.xstate_bv = 0b10
    fpstate.regs[26] = 1


def _permission(rig: Rig) -> None:
    rig.fpu.perm.state_perm &= ~TILE_DATA


def _guest_only(rig: Rig) -> None:
    parked = rig.fpu.task_fpstate
    assert parked is not None
    parked.xfeatures |= 1 << 12


def _xfd_err(rig: Rig) -> None:
    rig.cpus[1].xfd_err = TILE_DATA


def _request(rig: Rig) -> None:
    rig.guest().realloc_request = ReallocRequest(TILE_DATA, 0)


def _features(rig: Rig) -> None:
    rig.guests[0].xfeatures |= TILE_DATA


def _foreign(rig: Rig) -> None:
    rig.cpu.write_register(18, 0, b"somebody else's")


def _stale(rig: Rig) -> None:
    """The task lost the CPU and is still its owner; then somebody else's XMM registers are there."""
    switch_to(rig.cpu, None)
    rig.cpus[0].write_register(1, 0, b"somebody else's")


def _stale_xfd(rig: Rig) -> None:
    switch_to(rig.cpu, None)
    rig.cpus[0].xfd_set_state(TILE_DATA)


def _mxcsr_alone(rig: Rig) -> None:
    rig.cpu.mxcsr = 0x1FA0


def _pkru(rig: Rig) -> None:
    rig.fpu.pkru = 0


def _worker(rig: Rig) -> None:
    rig.fpu.kind = TaskKind.KTHREAD


def _offline(rig: Rig) -> None:
    rig.cpu.online = False


def _permission_size(rig: Rig) -> None:
    rig.fpu.guest_perm.state_size = 10752


def _init_image(rig: Rig) -> None:
    rig.host.init_fpstate.regs[24] = 0


def _init_features(rig: Rig) -> None:
    rig.host.init_fpstate.xfeatures |= TILE_DATA


@pytest.mark.parametrize(
    ("broken", "invariant"),
    [
        (_cache, "xfd_cache_is_the_register"),
        (_owner, "live_registers_are_owned"),
        (_last_cpu, "live_registers_are_owned"),
        (_register, "live_registers_are_owned"),
        (_off_cpu, "scheduled_out_is_in_memory"),
        (_hidden_state, "no_hidden_state_in_images"),
        (_in_use, "in_use_means_parked_user"),
        (_shared, "one_owner_each"),
        (_ledger, "ledger_balances"),
        (_too_small, "room_for_every_feature"),
        (_short_memory, "room_for_every_feature"),
        (_long_memory, "room_for_every_feature"),
        (_bv_outside_layout, "headers_are_loadable"),
        (_no_compaction_bit, "headers_are_loadable"),
        (_reserved_byte, "headers_are_loadable"),
        (_first_reserved_byte, "headers_are_loadable"),
        (_mxcsr, "headers_are_loadable"),
        (_guest_only, "no_dynamic_feature_without_permission"),
        (_xfd_err, "xfd_err_is_the_guests"),
        (_request, "no_request_outside_the_loop"),
        (_features, "guest_features_are_the_containers"),
        (_foreign, "no_foreign_register"),
        (_stale, "valid_registers_are_the_image"),
        (_stale_xfd, "valid_registers_are_the_image"),
        (_mxcsr_alone, "sse_marks_mxcsr"),
        (_pkru, "pkru_is_the_running_tasks"),
        (_worker, "workers_own_nothing"),
        (_offline, "offline_cpus_have_nobody"),
        (_permission_size, "permission_sizes_follow"),
        (_init_image, "init_image_is_pristine"),
        (_init_features, "init_image_is_pristine"),
    ],
    ids=lambda each: each.__name__.strip("_") if callable(each) else each,
)
def test_notices(broken: Callable[[Rig], None], invariant: str) -> None:
    """What is fine before is reported by name after one thing is broken."""
    rig = _entered()
    rig.check()
    broken(rig)
    found = {each.__name__: list(each(rig_view)) for rig_view in [rig.view()] for each in INVARIANTS}
    assert found[invariant], f"{invariant} did not notice; these did: {[name for name, what in found.items() if what]}"
    with pytest.raises(CoreBug):
        rig.check()


def test_notices_a_permission_that_is_gone() -> None:
    """A task that holds tile data without the permission of its process."""
    rig = Rig.create()
    rig.permit(guest=False)
    assert isinstance(realloc_task_fpstate(rig.fpu, TILE_DATA), Reallocated)
    rig.check()
    _permission(rig)
    with pytest.raises(CoreBug, match="no_dynamic_feature_without_permission"):
        rig.check()


def test_every_invariant_is_tested() -> None:
    """The table above names them all."""
    marks = test_notices.pytestmark  # type: ignore[attr-defined]
    assert {case[1] for case in marks[0].args[1]} == {each.__name__ for each in INVARIANTS}
