"""Whatever text a plan's reader gets, it returns a plan or says what is wrong with it, and never anything else."""

from __future__ import annotations

from fpstate.fault.v1 import plan_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.hit import Selector, Window
from fault_lab.plan.canonical import canonical_json, readable_json
from fault_lab.plan.load import load_plan
from fault_lab.plan.problem import PlanError
from fault_lab.plan.reader import read_text
from fault_lab.plan.resolve import RunFaults
from fault_lab.plan.warnings import warnings
from fault_lab.plans import shipped_plans
from fault_lab.wire.fault import (
    attributes_from_proto,
    attributes_to_proto,
    scope_to_proto,
    selector_from_proto,
    window_from_proto,
    window_to_proto,
)

TEXTS = [path.read_text() for path in shipped_plans().values()]
#: Pieces that are likely to change what a plan says.
PIECES = st.sampled_from(
    [
        *("-", ":", " ", "\n", "{", "}", "[", "]", "*", "&a ", "<<: ", "? ", "|\n", "!!int ", "'", '"', "\t", "%"),
        *("null", "~", "0", "-1", "9" * 30, "1e5", "5ms", "\x00", "\u2028", "é"),
        *("name: ", "action: ", "point: ", "drop", "ENOMEM"),
    ]
)
_SETTINGS = settings(deadline=None, derandomize=True, max_examples=300)


def outcome(text: str) -> None:
    """A checked plan can be shown, hashed, warned about and armed; anything else is a PlanError with a place."""
    try:
        plan = load_plan(text, "p")
    except PlanError:
        return
    assert read_text(canonical_json(plan), "p").plan == plan
    warnings(plan)
    RunFaults(plan, 1).enter("chaos")


@_SETTINGS
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    """Text of any kind."""
    outcome(text)


@_SETTINGS
@given(st.sampled_from(TEXTS), st.integers(0, 10_000), st.integers(0, 12), PIECES)
def test_a_plan_with_a_mistake(text: str, at: int, length: int, piece: str) -> None:
    """A shipped plan of which a piece was replaced by another."""
    at %= len(text)
    outcome(text[:at] + piece + text[at + length :])


_NAMES = st.text(max_size=20).filter(lambda text: all(not 0xD800 <= ord(each) <= 0xDFFF for each in text))


@_SETTINGS
@given(
    name=_NAMES,
    seed=st.integers(0, (1 << 64) - 1),
    labels=st.dictionaries(_NAMES, _NAMES, max_size=3),
    require=st.lists(_NAMES, max_size=3),
    times=st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
)
def test_a_message_is_its_text(
    name: str, seed: int, labels: dict[str, str], require: list[str], times: int | None
) -> None:
    """Whatever a message holds, reading its canonical or its readable text gives the same message."""
    plan = plan_pb2.Plan(name=name, description=name * 2, seed=seed)
    plan.topology.vms.add(name=name, labels=labels)
    fault = plan.faults.add(name=name, phases=[plan_pb2.PHASE_NAME_WARM])
    fault.attributes.require.extend(require)
    if times is not None:
        fault.attributes.times = times
    fault.action.drop_action.SetInParent()
    assert read_text(canonical_json(plan), "p").plan == plan
    assert read_text(readable_json(plan), "p").plan == plan


@_SETTINGS
@given(st.data())
def test_values_go_over_the_wire(data: st.DataObject) -> None:
    """Attributes, selectors and windows come back as they were."""
    counts = st.integers(0, 1 << 40)
    attributes = FaultAttributes(
        probability_ppm=data.draw(st.integers(0, 1_000_000)),
        interval=data.draw(st.integers(1, 1 << 40)),
        times=data.draw(st.integers(-1, 1 << 40)),
        space=data.draw(counts),
        fail_nth=data.draw(counts),
        verbose=data.draw(st.integers(0, 2)),
        task_filter=data.draw(st.booleans()),
        stacktrace_depth=data.draw(st.integers(0, 32)),
        require=tuple(data.draw(st.lists(_NAMES, max_size=2))),
        min_order=data.draw(st.integers(0, 63)),
        ignore_gfp_wait=data.draw(st.booleans()),
        should_fail_order=data.draw(st.sampled_from(["6.3", "2.6.20"])),
    )
    assert attributes_from_proto("a", attributes_to_proto(attributes)) == attributes
    selector = Selector(vm="vms/a", entity=data.draw(_NAMES), trigger=data.draw(_NAMES), xfeatures=data.draw(counts))
    assert selector_from_proto(scope_to_proto(selector)) == selector
    after, events = data.draw(st.integers(0, 10**15)), data.draw(counts)
    window = Window(after_ns=after, until_ns=after + 1, after_events=events, until_events=events + 1)
    assert window_from_proto("w", window_to_proto(window)) == window
