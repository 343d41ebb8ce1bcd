"""The fixtures of a world that a test steps through, and of the history of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fpstated.testing.options import WORLDS, given_plan, need_everything

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fpstate.fault.v1 import plan_pb2

    from fpstated.testing.plans import Given
    from fpstated.testing.records import Records
    from fpstated.testing.run import FaultRun
    from fpstated.testing.sim_world import SimWorld


class Worlds:
    """Makes the worlds of one test, and ends them with it."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self.made: list[SimWorld] = []

    def __call__(self, plan: Given | None = None, seed: int | None = None) -> SimWorld:
        """A world of a plan; without one, of ``--fault-plan``, or one that is to be built."""
        from fpstated.testing.sim_world import SimWorld

        option = self._request.config.option.fault_seed
        world = SimWorld(self._plan(plan), seed if option is None else option)
        self.made.append(world)
        return world

    def _plan(self, given: Given | None) -> plan_pb2.Plan | None:
        from fpstated.testing.plans import read_plan

        config = self._request.config
        if option := given_plan(config):
            return read_plan(option, config.invocation_params.dir, "--fault-plan").plan
        return None if given is None else read_plan(given, self._request.path.parent, "fpstate_world").plan


@pytest.fixture
def fpstate_world(request: pytest.FixtureRequest) -> Iterator[Worlds]:
    """``fpstate_world(plan, seed)``: a simulated world, of a plan, or built piece by piece; to step through."""
    need_everything()
    worlds = Worlds(request)
    request.node.stash[WORLDS] = worlds.made
    yield worlds
    for world in worlds.made:
        world.close()


@pytest.fixture
def fpstate_history(fpstate_run: FaultRun) -> Records:
    """The records of ``fpstate_run``; a world has its own: ``world.history``."""
    return fpstate_run.history
