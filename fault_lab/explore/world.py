"""A small world, put together from a plan: who there is, where everybody can be, and what can happen next."""

from __future__ import annotations

from fpstate.fault.v1 import plan_pb2

from fault_lab.explore.bounds import Bounds
from fault_lab.explore.cast import Cast
from fault_lab.explore.hosts import Hosts
from fault_lab.explore.menu import Menu
from fault_lab.explore.moves import Moves
from fault_lab.explore.people import People
from fault_lab.explore.sameness import Sameness
from fault_lab.explore.scripts import Scripts
from fault_lab.explore.state import State


class SmallWorld:
    """The world of one plan within bounds. Raises ``ExploreError`` for a plan that is none."""

    def __init__(self, plan: plan_pb2.Plan, bounds: Bounds) -> None:
        self.menu = Menu(plan)
        self.scripts = Scripts()
        self.hosts = Hosts(plan, Cast.of(plan), self.scripts, self.menu)
        self.people = People(self.hosts, self.scripts, bounds)
        self.moves = Moves(self.hosts, self.people, self.menu, bounds)
        in_order = bounds.preemptions is not None
        self.sameness = Sameness(self.hosts, self.people, in_order=in_order) if bounds.symmetry else None

    def first(self) -> State:
        """The state from which everything begins. Raises ``Violation``."""
        return self.people.first(self.hosts.first())
