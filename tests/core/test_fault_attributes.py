"""When an armed fault fires: the kernel's attributes in the kernel's order, and chance that anybody can compute.

Reference: Documentation/fault-injection/fault-injection.rst; lib/fault-inject.c, should_fail_ex();
mm/fail_page_alloc.c, __should_fail_alloc_page().
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fault_lab.injection.action import Delay, FailErrno
from fault_lab.injection.attributes import FaultAttributeError, FaultAttributes, order_of, parse_attributes
from fault_lab.injection.draw import PPM, draw_ppm
from fault_lab.injection.hit import Hit, Selector, Window, matches
from fault_lab.injection.table import ArmedFault, FaultTable, errno_of

_POINT = "fpstate.realloc.alloc"
_TRACE = (_POINT, "Xsetbv", "SubmitBatch")


def _fault(attributes: FaultAttributes | None = None, name: str = "f", **more: Any) -> ArmedFault:  # noqa: ANN401
    fields: dict[str, Any] = {"point": _POINT, "action": FailErrno(12)} | more
    return ArmedFault(name=name, attributes=attributes or FaultAttributes(), **fields)


def _hit(entity: str = "vms/a", size_bytes: int = 100, **more: Any) -> Hit:  # noqa: ANN401
    fields: dict[str, Any] = {"point": _POINT, "vm": "vms/a", "trace": _TRACE} | more
    return Hit(entity=entity, size_bytes=size_bytes, **fields)


def _fires(attributes: FaultAttributes, hits: int, **more: Any) -> list[int]:  # noqa: ANN401
    """The numbers of the hits, from 1, that fail."""
    fault = _fault(attributes)
    fired = [nr for nr in range(1, hits + 1) if fault.should_fail(_hit(**more))]
    assert fault.fired == len(fired)
    return fired


# -- which hits fire ---------------------------------------------------------------------------------------------------

EVERY = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("attributes", "fired"),
    [
        pytest.param(FaultAttributes(), EVERY, id="as armed: every hit"),
        pytest.param(FaultAttributes(probability_ppm=0), [], id="probability 0: never"),
        pytest.param(FaultAttributes(times=2), [1, 2], id="times 2: twice"),
        pytest.param(FaultAttributes(times=0), [], id="times 0: never"),
        pytest.param(FaultAttributes(interval=3), [3, 6], id="interval 3: every third hit"),
        pytest.param(FaultAttributes(interval=3, times=1), [3], id="interval and times"),
        pytest.param(FaultAttributes(space=250), [3, 4, 5, 6, 7, 8], id="space 250: 200 of 100 pass, then no more"),
        pytest.param(FaultAttributes(space=100), EVERY, id="space not larger than the size: at once"),
        pytest.param(FaultAttributes(space=250, interval=2), [4, 6, 8], id="what space lets pass is not counted"),
        pytest.param(FaultAttributes(fail_nth=4), [4], id="fail_nth 4: the fourth hit and no other"),
        pytest.param(FaultAttributes(fail_nth=2, probability_ppm=0, times=0), [2], id="fail_nth decides alone"),
        pytest.param(FaultAttributes(task_filter=True), [], id="task filter: the VM has no label"),
        pytest.param(FaultAttributes(require=("Xsetbv",)), EVERY, id="require: who led there is in the trace"),
        pytest.param(FaultAttributes(require=("Wrmsr",)), [], id="require: it is not"),
        pytest.param(FaultAttributes(reject=("SubmitBatch",)), [], id="reject: it is in the trace"),
        pytest.param(FaultAttributes(reject=("SubmitBatch",), stacktrace_depth=2), EVERY, id="reject: too far out"),
        pytest.param(FaultAttributes(require=("Xsetbv",), reject=("Xsetbv",)), [], id="reject wins"),
        pytest.param(FaultAttributes(require=("Xsetbv",), stacktrace_depth=0), [], id="depth 0 and require: never"),
        pytest.param(FaultAttributes(reject=("Xsetbv",), stacktrace_depth=0), EVERY, id="depth 0: nothing is rejected"),
        pytest.param(FaultAttributes(min_order=1), [], id="min_order 1: 100 bytes are order 0"),
        pytest.param(FaultAttributes(ignore_gfp_wait=True), [], id="every container may sleep"),
        pytest.param(FaultAttributes(ignore_gfp_highmem=True), [], id="every container may lie in high memory"),
    ],
)
def test_order_of_decision(attributes: FaultAttributes, fired: list[int]) -> None:
    """Which of eight hits of 100 bytes fail."""
    assert _fires(attributes, 8) == fired


def test_task_filter() -> None:
    """Only hits that are marked count, and the others use nothing up."""
    fault = _fault(FaultAttributes(task_filter=True, times=1))
    assert [fault.should_fail(_hit(make_it_fail=marked)) for marked in (False, True, True)] == [False, True, False]


def test_the_stack_filter_moved_in_6_3() -> None:
    """Before 6.3 a hit from elsewhere counts for the interval and is then thrown out; since then it is not seen."""
    elsewhere = ("fpstate.realloc.alloc", "SetXsave")
    hits = [_TRACE, elsewhere, _TRACE, _TRACE, elsewhere, _TRACE]
    fired = {}
    for order in ("6.3", "2.6.20"):
        fault = _fault(FaultAttributes(interval=2, require=("Xsetbv",), should_fail_order=order))
        fired[order] = [nr for nr, trace in enumerate(hits, start=1) if fault.should_fail(_hit(trace=trace))]
    assert fired == {"6.3": [3, 6], "2.6.20": [4, 6]}


def test_fail_nth_and_the_stack_filter() -> None:
    """Since 6.3 fail_nth counts what the filter lets through; before, whatever comes."""
    elsewhere = ("fpstate.realloc.alloc", "SetXsave")
    for order, fired in (("6.3", 3), ("2.6.20", 2)):
        fault = _fault(FaultAttributes(fail_nth=2, require=("Xsetbv",), should_fail_order=order))
        traces = [_TRACE, elsewhere, _TRACE]
        assert [nr for nr, trace in enumerate(traces, start=1) if fault.should_fail(_hit(trace=trace))] == [fired]


def test_fail_nth_uses_times_up() -> None:
    """As in should_fail_ex(), where fail-nth jumps to the same end."""
    fault = _fault(FaultAttributes(fail_nth=1, times=3))
    assert fault.should_fail(_hit())
    assert fault.attributes.times == 2


@pytest.mark.parametrize(
    ("size", "order"),
    [(0, 0), (1, 0), (4096, 0), (4097, 1), (8192, 1), (8193, 2), (10_816, 2), (16_385, 3)],
)
def test_order_of_a_size(size: int, order: int) -> None:
    """get_order() with pages of 4 KiB: a guest's container with tile data is of order 2."""
    assert order_of(size) == order


# -- against the order written out -------------------------------------------------------------------------------------


class Told:
    """should_fail_ex() step by step, as its two versions read, for one attribute block."""

    def __init__(self, attributes: FaultAttributes) -> None:
        self.a = attributes
        self.times = attributes.times
        self.space = attributes.space
        self.nth = attributes.fail_nth
        self.count = 0
        self.draws = 0

    def should_fail(self, hit: Hit) -> bool:
        """One call."""
        self.draws += 1
        checked = False
        if self.a.fail_nth:
            if self.a.should_fail_order == "6.3" and not self.a.stack_passes(hit.trace):
                return False
            checked = True
            self.nth -= 1
            return self._fail() if self.nth == 0 else False
        if not self.a.probability_ppm or (self.a.task_filter and not hit.make_it_fail) or not self.times:
            return False
        if self.a.should_fail_order == "6.3":
            checked = True
            if not self.a.stack_passes(hit.trace):
                return False
        if self.space > hit.size_bytes:
            self.space -= hit.size_bytes
            return False
        if self.a.interval > 1:
            self.count += 1
            if self.count % self.a.interval:
                return False
        if self.a.probability_ppm <= draw_ppm(self.a.seed, hit.point, hit.entity, self.draws):
            return False
        return False if not checked and not self.a.stack_passes(hit.trace) else self._fail()

    def _fail(self) -> bool:
        if self.times not in (-1, 0):
            self.times -= 1
        return True


_NAMES = st.lists(st.sampled_from(["Xsetbv", "SetXsave", "Tick"]), max_size=2).map(tuple)
_ATTRIBUTES = st.builds(
    FaultAttributes,
    probability_ppm=st.sampled_from([0, 1, 500_000, 999_999, PPM]),
    interval=st.integers(1, 4),
    times=st.integers(-1, 4),
    space=st.integers(0, 500),
    fail_nth=st.sampled_from([0, 0, 0, 1, 2, 5]),
    seed=st.integers(0, (1 << 64) - 1),
    task_filter=st.booleans(),
    stacktrace_depth=st.integers(0, 3),
    require=_NAMES,
    reject=_NAMES,
    should_fail_order=st.sampled_from(["6.3", "2.6.20"]),
)
_HITS = st.lists(
    st.builds(
        _hit,
        size_bytes=st.integers(0, 300),
        make_it_fail=st.booleans(),
        trace=_NAMES.map(lambda names: (_POINT, *names)),
    ),
    max_size=30,
)


@settings(deadline=None, derandomize=True, max_examples=500)
@given(attributes=_ATTRIBUTES, hits=_HITS)
def test_it_decides_as_the_kernel_does(attributes: FaultAttributes, hits: list[Hit]) -> None:
    """Whatever the attributes and the hits are, each decision is that of should_fail_ex() told step by step."""
    fault, told = _fault(attributes), Told(attributes)
    for hit in hits:
        assert fault.should_fail(hit) == told.should_fail(hit)
    assert (fault.attributes.times, fault.attributes.space) == (told.times, told.space)
    assert fault.hits == len(hits)


# -- chance ------------------------------------------------------------------------------------------------------------


def test_chance_is_deterministic_and_about_right() -> None:
    """30 % of 2,000 hits fail, the same ones each time, others under another seed."""
    attributes = FaultAttributes(probability_ppm=300_000, seed=7)
    fired = _fires(attributes, 2_000)
    assert fired == _fires(attributes, 2_000)
    assert fired != _fires(FaultAttributes(probability_ppm=300_000, seed=8), 2_000)
    assert 540 < len(fired) < 660


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["vms/a", "vms/b", "vms/c"]), max_size=40), st.integers(0, 1 << 63))
def test_nobody_elses_hits_move_a_draw(entities: list[str], seed: int) -> None:
    """What one entity draws depends on its own hits alone, however those of others come in between."""
    attributes = FaultAttributes(probability_ppm=PPM // 2, seed=seed)
    together, alone = _fault(attributes), _fault(attributes)
    mixed = [together.should_fail(_hit(entity)) for entity in entities]
    own = [fails for entity, fails in zip(entities, mixed, strict=True) if entity == "vms/a"]
    assert own == [alone.should_fail(_hit("vms/a")) for _ in own]


def test_a_delay_is_drawn_from_its_range() -> None:
    """Each hit has its own, the same each time; a range of one value is that value."""
    fault = _fault(action=Delay(1_000, 2_000), point="rpc.server.receive")
    drawn = []
    for _ in range(20):
        assert fault.should_fail(_hit(point="rpc.server.receive"))
        action = fault.drawn_action(_hit(point="rpc.server.receive"))
        assert isinstance(action, Delay)
        assert 1_000 <= action.min_ns == action.max_ns <= 2_000
        drawn.append(action.min_ns)
    assert len(set(drawn)) > 10
    assert _fault(action=Delay(5, 5)).drawn_action(_hit()) == Delay(5, 5)


# -- whose business ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        pytest.param(Selector(), True, id="anybody"),
        pytest.param(Selector(vm="vms/a"), True, id="its VM"),
        pytest.param(Selector(vm="vms/b"), False, id="another VM"),
        pytest.param(Selector(vcpu="vms/a/vcpus/0"), True, id="its vCPU"),
        pytest.param(Selector(vcpu="vms/a/vcpus/1"), False, id="another vCPU"),
        pytest.param(Selector(entity="vms/*/vcpus/0"), True, id="a pattern of its entity"),
        pytest.param(Selector(entity="vms/*/vcpus/1"), False, id="a pattern of another's"),
        pytest.param(Selector(trigger="Xset*"), True, id="what led there"),
        pytest.param(Selector(trigger="Wrmsr"), False, id="what did not"),
        pytest.param(Selector(xfeatures=1 << 18 | 1 << 17), True, id="one of the components"),
        pytest.param(Selector(xfeatures=1 << 9), False, id="none of them"),
        pytest.param(Selector(vm="vms/a", trigger="Wrmsr"), False, id="everything has to fit"),
    ],
)
def test_selector(selector: Selector, fits: bool) -> None:
    """A fault hears of the hits that its selector fits, and of no other."""
    fault = _fault(selector=selector)
    hit = _hit("vms/a/vcpus/0", vcpu="vms/a/vcpus/0", trigger="Xsetbv", xfeatures=1 << 18)
    assert fault.concerns(hit) is fits


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [("a*", "a", True), ("*", "", True), ("a.b", "axb", False), ("*->ctl", "host->ctl", True), ("a", "A", False)],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    """A star stands for any text, none included; everything else for itself."""
    assert matches(pattern, name) is fits


def test_window() -> None:
    """From its beginning on and before its end, in time and in events, counted from the arming."""
    window = Window(after_ns=10, until_ns=20, after_events=1, until_events=3)
    fault = _fault(window=window, armed_ns=100, armed_event=50)
    seen = [(ns, event) for ns in (109, 110, 119, 120) for event in (50, 51, 52, 53) if _concerned(fault, ns, event)]
    assert seen == [(110, 51), (110, 52), (119, 51), (119, 52)]


def _concerned(fault: ArmedFault, ns: int, event: int) -> bool:
    return fault.concerns(_hit(now_ns=ns, event=event))


def test_a_gate_decides_for_the_whole_run() -> None:
    """Of 2,000 seeds a quarter has the fault; one that has not counts no hits."""
    there = [not _fault(FaultAttributes(seed=seed), gate_ppm=PPM // 4).gated_out for seed in range(2_000)]
    assert 430 < sum(there) < 570
    assert _fault(gate_ppm=PPM).concerns(_hit())
    assert not _fault(gate_ppm=0).concerns(_hit())


def test_every_fault_that_is_concerned_counts_the_hit() -> None:
    """Two faults on one point: both count, the first that fires gives the errno."""
    table = FaultTable()
    table.arm(_fault(FaultAttributes(fail_nth=2), "second"))
    table.arm(_fault(name="always", action=FailErrno(5)))
    assert [errno_of(table.hit(_hit())) for _ in range(3)] == [5, 12, 5]
    assert [fault.fired for fault in table.armed.values()] == [1, 3]


def test_owners() -> None:
    """A hit may ask the faults of one owner, and the table tells one owner's from another's."""
    table = FaultTable()
    table.arm(_fault(name="mine", owner="me"))
    table.arm(_fault(name="theirs", owner="them", action=FailErrno(5)))
    assert errno_of(table.hit(_hit(), owner="them")) == 5
    assert [fault.hits for fault in table.armed.values()] == [0, 1]
    assert [fault.name for fault in table.owned("me")] == ["mine"]
    assert len(table.owned("")) == 2
    assert table.stands_at(_POINT)
    assert not table.stands_at("fpstate.guest.alloc")


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("probability_ppm", -1),
        ("probability_ppm", 1_000_001),
        ("interval", 0),
        ("times", -2),
        ("space", -1),
        ("fail_nth", -1),
        ("verbose", 3),
        ("verbose_ratelimit_interval_ms", -1),
        ("verbose_ratelimit_burst", -1),
        ("stacktrace_depth", 33),
        ("min_order", 64),
        ("should_fail_order", "7.0"),
    ],
)
def test_attribute_out_of_range(field: str, value: object) -> None:
    """A bad attribute is refused when it is made; the error names it and what would be accepted."""
    with pytest.raises(FaultAttributeError, match=f"{field}: expected .*, got {value!r}"):
        FaultAttributes(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        pytest.param("1,100,0,-1", FaultAttributes(), id="every hit"),
        pytest.param("10, 50, 4096, 3", FaultAttributes(interval=10, probability_ppm=500_000, space=4096, times=3)),
        pytest.param("0,0,0,0", FaultAttributes(probability_ppm=0, times=0), id="interval 0 is every hit"),
    ],
)
def test_the_boot_form(text: str, attributes: FaultAttributes) -> None:
    """<interval>,<probability>,<space>,<times>, the probability in percent."""
    assert parse_attributes(text) == attributes


@pytest.mark.parametrize(
    "text", ["", "1,100,0", "1,100,0,-1,5", "1,a,0,1", "1,1e2,0,1", "1,101,0,1", "1,100,-1,1", "²,1,1,1"]
)
def test_no_boot_form(text: str) -> None:
    """What is not four numbers in their ranges is refused with what was expected."""
    with pytest.raises(FaultAttributeError, match="expected"):
        parse_attributes(text)
