"""A campaign does what its outline says: every seed once, wherever it runs, however often it is stopped."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.campaign import executors
from fault_lab.campaign.block import run_block
from fault_lab.campaign.outline import Outline, OutlineError
from fault_lab.campaign.run import run_campaign, shrink_failures
from fault_lab.campaign.standing import Standing
from fault_lab.campaign.store import Store, StoreError
from fault_lab.plan.load import load_plan
from fault_lab.sim.run import simulate

P = ParamSpec("P")
T = TypeVar("T")

PLAN = Path(__file__).with_name("stuck.yaml")
RUNS = 24


class Here(Executor):
    """Does everything at once, in this process; ``until`` blocks, and then it is gone, as a machine may be."""

    def __init__(self, until: int = 1_000) -> None:
        self._left = until

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do it."""
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture(scope="module")
def plan() -> plan_pb2.Plan:
    """The plan of a controller that says nothing."""
    return load_plan(PLAN.read_text(encoding="utf-8"), PLAN.name)


def outline(plan: plan_pb2.Plan, **changed: Any) -> Outline:  # noqa: ANN401 -- any field of an outline
    """Seeds 1 to 24 in blocks of five: the last block is a short one."""
    wanted: dict[str, Any] = {"mode": plan_pb2.SEARCH_MODE_RANDOM, "depth": 3, "first": 1, "last": RUNS, "block": 5}
    return Outline(plan, **wanted | changed)


@pytest.fixture(scope="module")
def whole(plan: plan_pb2.Plan, tmp_path_factory: pytest.TempPathFactory) -> Standing:
    """What the campaign comes to where nothing stops it."""
    store = Store.create(tmp_path_factory.mktemp("whole") / "campaign", outline(plan))
    return run_campaign(store, Here(), jobs=1)


def test_every_seed_is_run_once(plan: plan_pb2.Plan, whole: Standing) -> None:
    """Its figures are those of the runs, one by one, and a failure says how often it was found and where first."""
    runs = [simulate(plan, seed) for seed in range(1, RUNS + 1)]
    failed = [run for run in runs if run.violation is not None]
    assert whole.done
    assert (whole.runs, whole.steps) == (RUNS, sum(run.steps for run in runs))
    assert whole.fired == sum(len(run.fired) for run in runs)
    assert 0 < len(failed) < RUNS, "in half of the runs there is a fault"
    assert whole.failed == len(failed)
    assert {failure.check for failure in whole.failures.values()} == {"no-stuck-exit"}
    assert min(failure.seed for failure in whole.failures.values()) == failed[0].seed


def test_where_it_runs_makes_no_difference(plan: plan_pb2.Plan, whole: Standing, tmp_path: Path) -> None:
    """Processes of this machine: the same histories, whichever block is done first."""
    store = Store.create(tmp_path / "campaign", outline(plan))
    with executors.processes(2) as pool:
        standing = run_campaign(store, pool, jobs=2)
    assert (standing.digest, standing.failures) == (whole.digest, whole.failures)


@pytest.mark.filterwarnings("ignore")  # what Dask warns of at its end is Dask's
def test_a_dask_cluster(plan: plan_pb2.Plan, whole: Standing, tmp_path: Path) -> None:
    """A real scheduler with two real workers."""
    pytest.importorskip("distributed", reason="pip install 'fpstated[dask]'")
    store = Store.create(tmp_path / "campaign", outline(plan))
    with executors.dask("local", 2) as cluster:
        standing = run_campaign(store, cluster, jobs=2)
        shrink_failures(store, standing, cluster, runs=30)
    assert (standing.digest, standing.failures) == (whole.digest, whole.failures)
    assert all(store.shrunk_of(failure.signature).exists() for failure in standing.failures.values())


@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster(plan: plan_pb2.Plan, whole: Standing, tmp_path: Path) -> None:
    """The same on Ray, where that is installed."""
    pytest.importorskip("ray", reason="pip install 'fpstated[ray]'")
    store = Store.create(tmp_path / "campaign", outline(plan))
    with executors.ray("local") as cluster:
        standing = run_campaign(store, cluster, jobs=2)
    assert (standing.digest, standing.failures) == (whole.digest, whole.failures)


@pytest.mark.parametrize("stopped_after", range(5))
def test_a_campaign_goes_on_where_it_was_stopped(
    plan: plan_pb2.Plan, whole: Standing, tmp_path: Path, stopped_after: int
) -> None:
    """What was done is not done again, half a line is no block, and in the end nobody can tell that it was stopped."""
    directory = tmp_path / "campaign"
    store = Store.create(directory, outline(plan))
    with pytest.raises(KeyboardInterrupt):
        run_campaign(store, Here(until=stopped_after), jobs=1)
    with (directory / "blocks.jsonl").open("a") as file:
        file.write('{"nr": 4, "first"')
    before = {block.nr for block in store.blocks()}

    again = Store.open(directory)
    begun: list[int] = []
    standing = run_campaign(again, Here(), jobs=1, on_block=lambda now: begun.append(max(now.blocks)))

    assert len(begun) == 5 - len(before)
    assert (standing.digest, standing.failures, standing.done) == (whole.digest, whole.failures, True)


def test_it_stops_when_enough_is_known(plan: plan_pb2.Plan, tmp_path: Path) -> None:
    """No block is begun after the first kind of failure."""
    store = Store.create(tmp_path / "campaign", outline(plan))
    standing = run_campaign(store, Here(), jobs=1, stop_after=1)
    assert standing.failures
    assert not standing.done


def test_a_failure_is_kept_as_a_plan_that_fails(plan: plan_pb2.Plan, tmp_path: Path) -> None:
    """Both as it was found and made small."""
    store = Store.create(tmp_path / "campaign", outline(plan))
    standing = run_campaign(store, Here(), jobs=1)
    shrink_failures(store, standing, Here(), runs=60)
    for failure in standing.failures.values():
        for path in (store.plan_of(failure.signature), store.shrunk_of(failure.signature)):
            kept = load_plan(path.read_text(encoding="utf-8"), path.name)
            found = simulate(kept, failure.seed).violation
            assert found is not None
            assert found.check == failure.check


def test_what_the_simulator_does_wrong_is_told(plan: plan_pb2.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no violation; the campaign goes on, and says it with the seed."""
    (first, *_rest) = outline(plan).work()
    monkeypatch.setattr("fault_lab.campaign.block.search", lambda *_a, **_k: (_ for _ in [1 // 0]))
    block = run_block(first)
    assert (block.broken, block.failures, block.runs) == (5, (), 5)
    assert block.error.startswith("seed 1: Traceback")
    assert block.error.rstrip().endswith("ZeroDivisionError: integer division or modulo by zero")


def test_two_at_once(plan: plan_pb2.Plan, tmp_path: Path) -> None:
    """The second is refused, and the first is not disturbed."""
    directory = tmp_path / "campaign"
    Store.create(directory, outline(plan))
    told: list[str] = []

    def second() -> None:
        with pytest.raises(StoreError) as refused, Store.open(directory).locked():
            pass
        told.append(str(refused.value))

    with Store.open(directory).locked():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert told == [f"{directory}: somebody is running this campaign"]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"mode": plan_pb2.SEARCH_MODE_PAIRS}, "mode: expected one of random, swarm, pct"),
        ({"first": 9, "last": 8}, "seeds: expected A..B with A <= B"),
        ({"last": 1 << 64}, "seeds: expected A..B with A <= B"),
        ({"block": 0}, "block: expected 1 to 100000 seeds, got 0"),
    ],
)
def test_what_cannot_be_a_campaign(plan: plan_pb2.Plan, changed: dict[str, Any], text: str) -> None:
    """The text names the field."""
    with pytest.raises(OutlineError, match=text):
        outline(plan, **changed)


def test_directories_that_hold_no_campaign(plan: plan_pb2.Plan, tmp_path: Path) -> None:
    """Each is refused with the file that is wrong, and left as it was."""
    with pytest.raises(StoreError, match=r"expected a campaign, there is no campaign\.json"):
        Store.open(tmp_path)
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(StoreError, match="expected an empty directory"):
        Store.create(tmp_path, outline(plan))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    store = Store.create(tmp_path / "campaign", outline(plan))
    path = store.directory / "campaign.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"sim": 0}))
    with pytest.raises(StoreError, match="sim: expected"):
        Store.open(store.directory)
    path.write_text(json.dumps(kept | {"plan": kept["plan"] | {"seed": "2"}}))
    with pytest.raises(StoreError, match="plan_sha256: expected the hash of the plan beside it"):
        Store.open(store.directory)
    (store.directory / "blocks.jsonl").write_text("nonsense\n")
    with pytest.raises(StoreError, match=r"blocks.jsonl: line 1: expected a block"):
        store.blocks()
