"""Bounds are kept to on every path, and what a small world is not is said by name."""

from __future__ import annotations

from collections import Counter

import pytest

from fault_lab.explore.bounds import Bounds
from fault_lab.explore.cast import ExploreError
from fault_lab.explore.fork import SHARED, forked
from fault_lab.explore.run import explore
from fault_lab.plan.load import load_plan
from fault_lab.plans import find_plan
from host_agent.journal.shapes import RECORDS, fields_of

PROCESSES = find_plan("small-processes").read_text(encoding="utf-8")
PLAN = load_plan(PROCESSES, "small-processes")


def test_no_path_has_more_than_its_bounds() -> None:
    """Counted on the paths themselves: of each kind no more fire than the bounds have; some path has all."""
    bounds = Bounds(faults=2, drops=1, duplicates=0, crashes=1, depth=14, states=2000)
    explored = explore(PLAN, bounds)
    most: Counter[str] = Counter()
    for number in range(explored.states):
        path = explored.space.path(number)
        fired = Counter(move.fires.point for move in path if move.fires is not None)
        assert sum(fired.values()) == explored.space.states[number].spent.faults <= 2
        assert len(path) <= 14
        for point, count in fired.items():
            most[point] = max(most[point], count)
    assert most == {"fpstate.realloc.alloc": 2, "node.run": 1, "link.message": 1}
    assert explored.states <= 2000


def test_a_search_that_was_cut_does_not_claim_to_be_whole() -> None:
    """Which bound cut it is said, and the words are not those of a space that is exhausted."""
    explored = explore(PLAN, Bounds(depth=3))
    assert (explored.depth, explored.exhausted, explored.space.cut) == (3, False, {"depth"})
    assert explored.verdict.endswith("; cut by depth")


def test_without_preemptions_everything_comes_in_its_turn() -> None:
    """With none, messages arrive as they were sent, and no deadline passes before its decision."""
    none, one, any_ = (explore(PLAN, Bounds(faults=1, crashes=0, preemptions=each)) for each in (0, 1, None))
    assert none.states < one.states
    assert not any(move.deadline for number in range(none.states) for move in none.space.path(number))
    assert any_.exhausted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"hosts: [{name: h}]": "hosts: [{name: h}, {name: i}]"},
            "topology.hosts: expected one host to explore, got 2",
        ),
        ({"script": "rounds: 2, script"}, "workload: vms/a/vcpus/0: rounds: expected 1 to explore, got 2"),
    ],
)
def test_what_is_no_small_world(change: dict[str, str], said: str) -> None:
    """A plan with what is not explored is refused before anything is."""
    text = """
api-version: fpstate.fault.v1
name: no
topology: {hosts: [{name: h}], vms: [{name: a}]}
workload: {guests: [{script: hlt}]}
"""
    for old, new in change.items():
        text = text.replace(old, new)
    with pytest.raises(ExploreError, match=said.replace(".", r"\.")):
        explore(load_plan(text, "no"))


def test_bounds_that_are_none() -> None:
    """A bound is refused with its name."""
    with pytest.raises(ValueError, match="faults: expected 0 or more, got -1"):
        Bounds(faults=-1)
    with pytest.raises(ValueError, match="symmetry: expected none together with liveness"):
        explore(PLAN, Bounds(), liveness=("no-stuck-exit",))


def test_a_forked_machine_shares_no_record() -> None:
    """Nothing that changes is held by both copies, and both are the same to the byte of their digests."""
    explored = explore(PLAN, Bounds(faults=1, crashes=0))
    checked = 0
    for state in explored.space.states[::50]:
        machine = explored.world.hosts.turn(state.host).machine
        twin = forked(machine)
        twin.state.faults = machine.state.faults  # those of the turn, which a copy begins without
        assert twin.digest() == machine.digest()
        assert not _records(machine.state) & _records(twin.state)
        checked += 1
    assert checked > 3


def _records(root: object) -> set[int]:
    """The identities of every record, container and bytearray that an object holds, itself included."""
    found: set[int] = set()
    waiting = [root]
    while waiting:
        each = waiting.pop()
        if id(each) in found:
            continue
        if type(each) in RECORDS.keys() - SHARED:
            found.add(id(each))
            waiting += [getattr(each, name) for name in fields_of(type(each)) if name not in ("deadlines", "faults")]
        elif isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, list | tuple | set | frozenset):
            waiting += each
        elif isinstance(each, bytearray):
            found.add(id(each))
    return found
