"""When an armed fault fires: the kernel's attributes in the kernel's order, and chance that anybody can compute.

Reference: Documentation/fault-injection/fault-injection.rst; lib/fault-inject.c, should_fail_ex().
"""

from __future__ import annotations

import pytest

from fault_lab.injection.draw import PPM
from fault_lab.injection.table import ArmedFault, FaultAttributeError, FaultAttributes, FaultTable

_POINT = "fpstate.realloc.alloc"


def _fires(attributes: FaultAttributes, hits: int, size_bytes: int = 100) -> list[int]:
    """The numbers of the hits, from 1, that fail."""
    fault = ArmedFault(name="f", point=_POINT, errno=12, attributes=attributes)
    fired = [hit for hit in range(1, hits + 1) if fault.should_fail("vms/a", size_bytes)]
    assert (fault.hits, fault.fired) == (hits, len(fired))
    return fired


@pytest.mark.parametrize(
    ("attributes", "fired"),
    [
        pytest.param(FaultAttributes(), [1, 2, 3, 4, 5, 6, 7, 8], id="as armed: every hit"),
        pytest.param(FaultAttributes(probability_ppm=0), [], id="probability 0: never"),
        pytest.param(FaultAttributes(times=2), [1, 2], id="times 2: twice"),
        pytest.param(FaultAttributes(times=0), [], id="times 0: never"),
        pytest.param(FaultAttributes(interval=3), [3, 6], id="interval 3: every third hit"),
        pytest.param(FaultAttributes(interval=3, times=1), [3], id="interval and times"),
        pytest.param(FaultAttributes(space=250), [3, 4, 5, 6, 7, 8], id="space 250: 200 of 100 pass, then no more"),
        pytest.param(
            FaultAttributes(space=100), [1, 2, 3, 4, 5, 6, 7, 8], id="space not larger than the size: at once"
        ),
        pytest.param(FaultAttributes(fail_nth=4), [4], id="fail_nth 4: the fourth hit and no other"),
        pytest.param(FaultAttributes(fail_nth=2, probability_ppm=0, times=0), [2], id="fail_nth decides alone"),
    ],
)
def test_order_of_decision(attributes: FaultAttributes, fired: list[int]) -> None:
    """Which of eight hits of 100 bytes fail."""
    assert _fires(attributes, 8) == fired


def test_chance_is_deterministic_and_about_right() -> None:
    """30 % of 2,000 hits fail, the same ones each time, others under another seed."""
    attributes = FaultAttributes(probability_ppm=300_000, seed=7)
    fired = _fires(attributes, 2_000)
    assert fired == _fires(attributes, 2_000)
    assert fired != _fires(FaultAttributes(probability_ppm=300_000, seed=8), 2_000)
    assert 540 < len(fired) < 660


def test_faults_do_not_share_their_chance() -> None:
    """Taking one fault out moves no other: each draw depends on its own counter alone."""
    alone, together = FaultTable(), FaultTable()
    attributes = FaultAttributes(probability_ppm=PPM // 2, seed=1)
    alone.arm(ArmedFault(name="b", point=_POINT, errno=12, vm="vms/b", attributes=attributes))
    together.arm(ArmedFault(name="a", point=_POINT, errno=12, vm="vms/a", attributes=attributes))
    together.arm(ArmedFault(name="b", point=_POINT, errno=12, vm="vms/b", attributes=attributes))
    for _ in range(100):
        together.should_fail(_POINT, "vms/a", "", 1)
        assert alone.should_fail(_POINT, "vms/b", "", 1) == together.should_fail(_POINT, "vms/b", "", 1)


def test_scope() -> None:
    """A fault hears of hits of its point in its VM, or on its vCPU, and of no other."""
    table = FaultTable()
    table.arm(ArmedFault(name="vm", point=_POINT, errno=12, vm="vms/a"))
    table.arm(ArmedFault(name="vcpu", point=_POINT, errno=12, vcpu="vms/b/vcpus/1"))
    assert table.should_fail(_POINT, "vms/a", "vms/a/vcpus/0", 1) == 12
    assert table.should_fail(_POINT, "vms/b", "vms/b/vcpus/0", 1) == 0
    assert table.should_fail(_POINT, "vms/b", "vms/b/vcpus/1", 1) == 12
    assert table.should_fail("fpstate.guest.alloc", "vms/a", "", 1) == 0
    assert [fault.hits for fault in table.armed.values()] == [1, 1]


def test_every_fault_in_scope_counts_the_hit() -> None:
    """Two faults on one point: both count, the first that fires gives the errno."""
    table = FaultTable()
    table.arm(ArmedFault(name="second", point=_POINT, errno=12, attributes=FaultAttributes(fail_nth=2)))
    table.arm(ArmedFault(name="always", point=_POINT, errno=5))
    assert [table.should_fail(_POINT, "vms/a", "", 1) for _ in range(3)] == [5, 12, 5]
    assert [fault.fired for fault in table.armed.values()] == [1, 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("probability_ppm", -1),
        ("probability_ppm", 1_000_001),
        ("interval", 0),
        ("times", -2),
        ("space", -1),
        ("fail_nth", -1),
    ],
)
def test_attribute_out_of_range(field: str, value: int) -> None:
    """A bad attribute is refused when it is made; the error names it and what would be accepted."""
    with pytest.raises(FaultAttributeError, match=f"{field}: expected .*, got {value}"):
        FaultAttributes(**{field: value})
