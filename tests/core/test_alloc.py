"""The allocator: limits to the byte, an exact ledger, and fault points that come first."""

from __future__ import annotations

import pytest

from fpu_core.alloc import (
    FAULT_POINTS,
    POINT_GUEST_ALLOC,
    Account,
    Allocator,
    AllocFailure,
    AllocFailureCause,
)
from fpu_core.errors import CoreBug, Errno, FieldError
from tests.core.rig import allocated


def _accounts(*, vm: int | None = None, host: int | None = None) -> tuple[Allocator, Account]:
    allocator = Allocator()
    allocator.host.set_limit(host)
    return allocator, Account("vm", allocator.host, vm)


def test_memory_is_zeroed_and_charged_with_its_header() -> None:
    """An image of 100 bytes with a header of 64 costs 164 bytes, on the VM and on the host."""
    allocator, account = _accounts()
    assert allocated(allocator.vzalloc(POINT_GUEST_ALLOC, account, 100, 64)) == bytes(100)
    for line in (account, allocator.host):
        assert (line.used_bytes, line.peak_bytes, line.allocations, line.failures) == (164, 164, 1, 0)
    allocator.vfree(account, 164)
    for line in (account, allocator.host):
        assert (line.used_bytes, line.peak_bytes) == (0, 164)


@pytest.mark.parametrize(
    ("vm", "host", "refused_by"),
    [
        pytest.param(164, None, None, id="exactly the VM's limit is fine"),
        pytest.param(163, None, "vm", id="one byte over the VM's limit"),
        pytest.param(None, 164, None, id="exactly the host's limit is fine"),
        pytest.param(None, 163, "host", id="one byte over the host's limit"),
        pytest.param(163, 163, "vm", id="both in the way: the VM is named, it is asked first"),
        pytest.param(0, None, "vm", id="a limit of 0 refuses everything"),
    ],
)
def test_limits(vm: int | None, host: int | None, refused_by: str | None) -> None:
    """A limit refuses what would go over it; nothing is charged then, and who refused is named."""
    allocator, account = _accounts(vm=vm, host=host)
    result = allocator.vzalloc(POINT_GUEST_ALLOC, account, 100, 64)
    if refused_by is None:
        assert len(allocated(result)) == 100
    else:
        assert result == AllocFailure(AllocFailureCause.QUOTA, 164, refused_by)
        assert (account.used_bytes, allocator.host.used_bytes, account.failures) == (0, 0, 1)


def test_lowering_a_limit_takes_nothing_back() -> None:
    """A limit below what is used only refuses what is new."""
    allocator, account = _accounts()
    allocator.vzalloc(POINT_GUEST_ALLOC, account, 100, 64)
    account.set_limit(10)
    assert account.used_bytes == 164
    assert isinstance(allocator.vzalloc(POINT_GUEST_ALLOC, account, 1, 0), AllocFailure)
    account.set_limit(None)
    assert len(allocated(allocator.vzalloc(POINT_GUEST_ALLOC, account, 1, 0))) == 1


def test_negative_limit_is_refused() -> None:
    """A limit is 0 or more bytes."""
    _, account = _accounts()
    with pytest.raises(FieldError, match="byte_limit: expected 0 or more bytes, got -1"):
        account.set_limit(-1)


@pytest.mark.parametrize("point", FAULT_POINTS)
def test_fault_point_comes_before_the_limits(point: str) -> None:
    """The hook is asked first, hears point, account and bytes, and its failure is NO_MEMORY even at a full quota."""
    allocator, account = _accounts(vm=0)
    asked = []

    def fail(*args: object) -> Errno:
        asked.append(args)
        return Errno.ENOMEM

    allocator.should_fail = fail
    result = allocator.vzalloc(point, account, 100, 64)
    assert result == AllocFailure(AllocFailureCause.NO_MEMORY, 164, "vm")
    assert asked == [(point, "vm", 164)]


def test_freeing_more_than_was_taken_is_our_bug() -> None:
    """The ledger never goes below zero."""
    allocator, account = _accounts()
    with pytest.raises(CoreBug, match="account vm frees more than it took"):
        allocator.vfree(account, 1)
