"""Coverage: the whole table of a small plan, then what must hold for any."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from fault_lab.pictures.coverage import Coverage
from fault_lab.pictures.coverage_cells import Cells
from fault_lab.pictures.coverage_page import coverage_page
from fault_lab.pictures.coverage_text import coverage_lines, coverage_values
from fault_lab.pictures.recording import read_recording, records_of
from fault_lab.pictures.vcpu_states import STATES
from fault_lab.plan.canonical import canonical_json
from fault_lab.sim.run import simulate
from tests.pictures.runs import HOSTILE, hostile, plan


def covered(name: str, seeds: range) -> Coverage:
    """The coverage of some runs."""
    loaded = plan(name)
    found = Coverage(json.loads(canonical_json(loaded)))
    for seed in seeds:
        found.add(records_of(simulate(loaded, seed).lines))
    return found


FIRST = """\
                           retry  pause  cancelled  none
fpstate.realloc.alloc: 3 hits fired
  outside                      3      .          .     .
  never: entered; parked, generation 1; parked, generation 2 on; paused
the plan arms no fault here: fpstate.guest.alloc, fpstate.realloc.perm, kvm.vm.alloc, kvm.vcpu.alloc, \
rpc.server.receive, rpc.server.reply, rpc.client.send, rpc.client.receive, link.message, node.run, node.clock, \
journal.write, journal.sync, controller.decide
no task of this plan makes this call: fpstate.task.realloc.alloc, fpstate.task.realloc.perm, \
kvm.set_cpuid.copy, kvm.set_xsave.copy, kvm.set_xcrs.copy, kvm.set_msrs.copy
no policy of the plan decides: RETRY_AFTER, RAISE_LIMIT, RECLAIM, INJECT_GP, INJECT_NM, DEFER, KILL_VCPU, \
KILL_VM, RESET_VM, HIDE_FEATURE, MIGRATE
runs: 3, cells reached: 1 of 20
"""


def test_the_table_of_a_small_plan() -> None:
    """The founding failure: the first growth fails outside of KVM_RUN, and a retry follows."""
    assert "\n".join(coverage_lines(covered("first", range(1, 4)))) + "\n" == FIRST


def test_what_cannot_be_reached_is_not() -> None:
    """Not one hit of the storm falls into a cell that is said to be impossible, and nothing is lost on the way."""
    found = covered("storm", range(1, 9))
    cells = Cells(found)
    assert found.cells
    for point, state, decision in found.cells:
        assert cells.why_not(point, state) == ""
        assert decision in cells.decisions
    assert {point for point, _, _ in found.cells} == set(found.hits)
    values = coverage_values(found)
    assert values["reached"] == len(found.cells)
    assert values["reached"] < values["reachable"]


@pytest.mark.parametrize(
    ("point", "state", "reason"),
    [
        ("kvm.set_msrs.copy", "", "no task of this plan makes this call"),
        ("kvm.vm.alloc", "", "the plan arms no fault here"),
        ("kvm.vcpu.alloc", "entered", "the vCPU is there already"),
        ("fpstate.realloc.alloc", "killed", "nothing of it grows"),
        ("link.message", "broken", "a bug of ours alone breaks a vCPU, and ends the run"),
        ("rpc.server.reply", "host down", "a host that is down asks nothing"),
        ("link.message", "host down", ""),
    ],
)
def test_why_a_cell_cannot_be_reached(point: str, state: str, reason: str) -> None:
    """Each reason once."""
    assert Cells(Coverage(json.loads(canonical_json(plan("storm"))))).why_not(point, state) == reason


def test_where_no_host_ends_and_nothing_takes_time() -> None:
    """Two reasons that depend on the plan."""
    cells = Cells(Coverage(json.loads(canonical_json(plan("first")))))
    assert cells.why_not("fpstate.realloc.alloc", "host down") == "no fault of this plan ends a host"
    assert cells.why_not("fpstate.realloc.alloc", "parked, applying") == "no decision of this plan takes time"


def test_the_page_has_a_cell_for_each() -> None:
    """Every row is as wide as the head says; a cell that was never reached says 0."""
    found = covered("first", range(1, 4))
    page = coverage_page(found, "1..3")
    wide = len(STATES) * 4
    grid = _Grid()
    grid.feed(page)
    assert grid.widths == [wide] * (len(Cells(found).points))
    assert page.count('class="cell s2 first"') == 1
    assert page.count("cell never") == 20
    assert page == coverage_page(found, "1..3")


class _Grid(HTMLParser):
    """The widths of the rows of the body of the table, without the two columns in front."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []
        self._body = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count the cells."""
        self._body = self._body or tag == "tbody"
        if self._body and tag == "tr":
            self.widths.append(-1)
        if self._body and tag == "td":
            self.widths[-1] += int(dict(attrs).get("colspan") or 1)


def test_hostile_texts_stay_texts() -> None:
    """A plan's name, a point and a decision that say what would do harm."""
    run = read_recording(hostile())
    found = Coverage({**run.plan, "name": HOSTILE, "faults": [], "topology": {"hosts": [{"name": "host"}]}})
    found.add(run.records)
    page = coverage_page(found, HOSTILE)
    assert "<img" not in page
    assert "<script" not in page
