"""The fixtures of finished runs: ``fpstate_run`` and ``fpstate_runs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fpstated.testing.options import RAN

if TYPE_CHECKING:
    from fpstated.testing.run import FaultRun, FaultRuns


@pytest.fixture
def fpstate_run(request: pytest.FixtureRequest) -> FaultRun:
    """A finished run of the marker's plan with this test's seed. Where it violates a check, the test has failed."""
    from fpstated.testing.play import one_run
    from fpstated.testing.run import Ran

    runs, seed = request.param
    ran = request.node.stash[RAN] = Ran(wanted=list(runs.plan.checks.sometimes))
    run = one_run(request, runs, seed)
    ran.add(run)
    return run


@pytest.fixture
def fpstate_runs(request: pytest.FixtureRequest) -> FaultRuns:
    """The runs of the marker's search, or of all its seeds, to go through: the first that violates a check fails."""
    from fpstated.testing.play import all_runs
    from fpstated.testing.run import Ran

    ran = request.node.stash[RAN] = Ran(wanted=list(request.param.plan.checks.sometimes))
    return all_runs(request, request.param, ran)
