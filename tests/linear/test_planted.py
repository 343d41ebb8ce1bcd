"""Planted bugs that this check finds and no other does; and a storm in which it finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault_lab.linear.checker import Operation
from fault_lab.linear.judge import judge
from fault_lab.plan.load import load_plan
from fault_lab.sim.run import LINEARIZABLE, simulate
from tests.linear.mutants import MUTANTS

TEXT = (Path(__file__).parent / "observed.yaml").read_text(encoding="utf-8")
OBSERVED = load_plan(TEXT, "observed.yaml")
WITHOUT = load_plan(f"{TEXT}checks: {{skip-linearizability: true}}\n", "observed.yaml")
REPEAT = "fpstated sim run tests/linear/observed.yaml --seed"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_found_by_this_check_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first seed that shows it is found as not linearizable; without the check the same run violates nothing."""
    plant, runs = MUTANTS[name]
    plant(monkeypatch)
    for seed in range(runs):
        violation = simulate(OBSERVED, seed).violation
        if violation is not None:
            assert violation.check == LINEARIZABLE, (seed, violation)
            assert "no order explains" in violation.text
            plant(monkeypatch)  # what a bug remembers of the run before is no part of this one
            assert simulate(WITHOUT, seed).violation is None, f"{REPEAT} {seed}"
            return
    pytest.fail(f"{name}: not found in {runs} runs")


@pytest.mark.parametrize("seed", range(6))
def test_without_a_bug_nothing_is_found(seed: int) -> None:
    """Everything is explained, in few steps; and there was something to explain: reads beside writes, lost answers."""
    result = simulate(OBSERVED, seed)
    assert (result.violation, result.unknown) == (None, ""), f"{REPEAT} {seed}"
    assert len(result.fired) > 10
    judged = judge(result.lines)
    assert len(judged.vcpus) == 3
    for history, verdict in judged.vcpus.values():
        assert verdict.steps < 3 * verdict.operations
        assert _overlaps(history.operations) > 0


@pytest.mark.parametrize(
    "policy", ["kill-vm", "reset-vm", "kill-vcpu", "reclaim", "hide-feature", "inject-nm", "defer", "pause"]
)
@pytest.mark.parametrize("ephemeral", [False, True])
def test_whatever_is_decided_is_explained(policy: str, ephemeral: bool) -> None:
    """Every decision, on a host with a journal and on one that forgets: no check has anything against either."""
    text = TEXT.replace('"retry:tries=2,then=inject-gp"', f'"{policy}"')
    if ephemeral:
        text = text.replace("default-lease: 3s", "default-lease: 3s, ephemeral: true")
    for seed in (1, 2):
        result = simulate(load_plan(text, "observed.yaml"), seed)
        assert (result.violation, result.unknown) == (None, ""), (seed, policy, ephemeral)
        assert result.fired


def _overlaps(operations: list[Operation]) -> int:
    """How many reads were under way while something else was."""
    reads = [each for each in operations if each.reads and each.ret is not None]
    others = [each for each in operations if not each.reads and each.ret is not None]
    return sum(one.call < (other.ret or 0) and other.call < (one.ret or 0) for one in reads for other in others)
