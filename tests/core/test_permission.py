"""arch_prctl: which errno, in which order, and what a permission is afterwards.

Reference: arch/x86/kernel/fpu/xstate.c, fpu_xstate_prctl(); Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fpu_core.cpuid import builtin_profile
from fpu_core.errors import CoreBug, Errno
from fpu_core.fpu import FPU_GUEST_PERM_LOCKED, Fpu
from fpu_core.invariants import PermissionHistory
from fpu_core.permission import (
    XcompOp,
    arch_prctl,
    get_permitted,
    get_supported,
    group_perm,
    request_permission,
)
from fpu_core.rules import KERNEL_6_12, KERNEL_6_18, KernelRules
from fpu_core.task import exec_task
from fpu_core.xfeature import XFEATURE_MASK_SUPERVISOR_SUPPORTED
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from tests.core.rig import SPR, Rig


@pytest.mark.parametrize(
    ("rules", "profile", "feature", "guest", "state", "errno"),
    [
        pytest.param(KERNEL_6_18, SPR, -1, False, "", Errno.EINVAL, id="a negative number: EINVAL"),
        pytest.param(KERNEL_6_18, SPR, 20, False, "", Errno.EINVAL, id="XFEATURE_MAX itself: EINVAL"),
        pytest.param(KERNEL_6_18, SPR, 19, False, "", Errno.EOPNOTSUPP, id="19 is a number 6.18 knows: EOPNOTSUPP"),
        pytest.param(KERNEL_6_12, SPR, 19, False, "", Errno.EINVAL, id="and 6.12 does not: EINVAL"),
        pytest.param(KERNEL_6_18, SPR, 0, False, "", Errno.EOPNOTSUPP, id="x87 needs no permission: EOPNOTSUPP"),
        pytest.param(KERNEL_6_18, SPR, 17, False, "", Errno.EOPNOTSUPP, id="XTILE_CFG is no facility: EOPNOTSUPP"),
        pytest.param(KERNEL_6_18, "zen4", 18, False, "", Errno.EOPNOTSUPP, id="a processor without AMX: EOPNOTSUPP"),
        pytest.param(KERNEL_6_18, SPR, 18, False, "", Errno.OK, id="XTILE_DATA for tasks: 0"),
        pytest.param(KERNEL_6_18, SPR, 18, True, "", Errno.OK, id="XTILE_DATA for guests: 0"),
        pytest.param(KERNEL_6_18, SPR, 18, False, "locked", Errno.OK, id="a vCPU does not lock the tasks' own: 0"),
        pytest.param(KERNEL_6_18, SPR, 18, True, "locked", Errno.EBUSY, id="guests, after the first vCPU: EBUSY"),
        pytest.param(
            KERNEL_6_18, SPR, 17, True, "locked", Errno.EOPNOTSUPP, id="the number is checked before the lock"
        ),
        pytest.param(KERNEL_6_18, SPR, 20, True, "locked", Errno.EINVAL, id="and so is the range"),
        pytest.param(KERNEL_6_18, SPR, 18, True, "permitted, locked", Errno.OK, id="permitted already, and locked: 0"),
    ],
)
def test_errno(rules: KernelRules, profile: str, feature: int, guest: bool, state: str, errno: Errno) -> None:
    """One request and its errno; whatever is refused changes nothing."""
    rig = Rig.create(profile, rules=rules)
    if "permitted" in state:
        rig.permit()
    if "locked" in state:
        rig.guest()
    before = (get_permitted(rig.fpu, guest=guest), group_perm(rig.fpu, guest=guest).state_size)
    assert request_permission(rig.fpu, feature, guest=guest) is errno
    if errno is not Errno.OK:
        assert (get_permitted(rig.fpu, guest=guest), group_perm(rig.fpu, guest=guest).state_size) == before


@pytest.mark.parametrize("guest", [False, True], ids=["tasks", "guests"])
@pytest.mark.parametrize("absent", ["", "OSPKE", "SHSTK", "ENQCMD", "AVX512F", "AVX512F and OSPKE"])
def test_the_size_of_a_permission_is_that_of_its_features(absent: str, guest: bool) -> None:
    """Supervisor features count, on processors whose alignment does not hide them too, as under ``nopku`` (bug B7)."""
    profile = builtin_profile(SPR)
    lacking = dict.fromkeys(absent.split(" and ") if absent else [], False)
    rig = Rig.create(replace(profile, caps_override=profile.caps._replace(**lacking)))
    rig.permit(guest=guest)
    perm = group_perm(rig.fpu, guest=guest)
    assert perm.state_size == rig.config.kernel_size(perm.state_perm)
    assert perm.user_state_size == rig.config.user_size(perm.state_perm)


def test_the_three_fields_change_together() -> None:
    """Permission, kernel size and user size: 10,752 and 11,008 bytes once tile data is permitted."""
    rig = Rig.create()
    for guest in (False, True):
        perm = group_perm(rig.fpu, guest=guest)
        assert (perm.state_size, perm.user_state_size) == (2560, 2816)
        rig.permit(guest=guest)
        assert (perm.state_size, perm.user_state_size) == (10752, 11008)
        assert perm.state_size == rig.config.kernel_size(perm.state_perm)


def test_what_is_told_and_what_is_hidden() -> None:
    """GET_XCOMP_SUPP tells the user features; GET_XCOMP_PERM hides supervisor bits and the lock."""
    rig = Rig.create()
    assert get_supported(rig.fpu) == 0x602E7
    assert get_permitted(rig.fpu, guest=False) == get_permitted(rig.fpu, guest=True) == 0x202E7
    rig.permit()
    rig.guest()
    assert get_permitted(rig.fpu, guest=True) == 0x602E7
    assert get_permitted(rig.fpu, guest=False) == 0x202E7
    assert group_perm(rig.fpu, guest=True).state_perm & FPU_GUEST_PERM_LOCKED


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        pytest.param(KERNEL_6_18, True, id="6.18 keeps supervisor bits"),
        pytest.param(KERNEL_6_12, False, id="6.12 loses them when a permission is granted (bug B6)"),
    ],
)
def test_supervisor_bits(rules: KernelRules, kept: bool) -> None:
    """A grant stores the union; the size is computed before 6.12 masks it, so containers are large enough anyway."""
    rig = Rig.create(rules=rules)
    rig.permit()
    perm = group_perm(rig.fpu, guest=True)
    assert bool(perm.state_perm & XFEATURE_MASK_SUPERVISOR_SUPPORTED) == kept
    assert perm.state_size == 10752


@pytest.mark.parametrize(
    ("address", "fine"),
    [
        pytest.param(0, False, id="a null pointer"),
        pytest.param(0xFFFF, False, id="below mmap_min_addr"),
        pytest.param(0x1_0000, True, id="the lowest mapping there can be"),
        pytest.param(0x7FFF_FFFF_EFF8, True, id="the last eight bytes of user space"),
        pytest.param(0x7FFF_FFFF_EFF9, False, id="a byte later"),
        pytest.param(0x7FFF_FFFF_F000, False, id="TASK_SIZE_MAX"),
        pytest.param(0xFFFF_8000_0000_0000, False, id="the kernel's half"),
    ],
)
def test_where_an_answer_can_go(address: int, fine: bool) -> None:
    """A GET stores eight bytes in user memory: EFAULT where there can be none."""
    rig = Rig.create()
    assert arch_prctl(rig.fpu, XcompOp.GET_SUPP, address) == ((Errno.OK, 0x602E7) if fine else (Errno.EFAULT, None))


def test_permission_belongs_to_the_process() -> None:
    """A thread asks for all of its process, and has what any of its threads was given."""
    rig = Rig.create()
    thread = Fpu(rig.host, "thread", account=rig.fpu.account, leader=rig.fpu)
    assert request_permission(thread, 18, guest=False) is Errno.OK
    assert get_permitted(rig.fpu, guest=False) & TILE_DATA


def test_history_notices_a_loss() -> None:
    """The checker that remembers: a permission or a lock that is gone is our bug, unless exec took it."""
    rig = Rig.create()
    history = PermissionHistory(rules_lose_supervisor=False, user_supported=rig.config.rules.user_supported)
    rig.permit()
    history.check([rig.fpu])
    exec_task(rig.fpu)
    with pytest.raises(CoreBug, match="permissions_only_grow: task"):
        history.check([rig.fpu])
    history.forget(rig.fpu)
    history.check([rig.fpu])
