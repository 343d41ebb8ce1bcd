"""The marker ``fpstate_faults``: its arguments, each looked at when the test is collected, and the tests it makes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from fpstated.testing.options import given_plan, missing

if TYPE_CHECKING:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.sim.record import Recorded

RUN: Final = "fpstate_run"
RUNS: Final = "fpstate_runs"
_ARGUMENTS: Final = ("plan", "seeds", "mode", "runs", "depth", "checks", "violation")
_SEEDS_MAX: Final = 100_000
_SEED_MAX: Final = (1 << 64) - 1


class _WrongArgumentError(ValueError):
    """An argument of the marker that cannot be right: the text begins with its name."""


@dataclass(frozen=True)
class Runs:
    """The runs of one test: of a plan, with seeds, or by a mode from the first of them on. ``word``: see FaultRun."""

    plan: plan_pb2.Plan
    seeds: tuple[int, ...]
    word: str = ""
    mode: str = ""
    bound: int = 0
    depth: int = 0
    violation: str = ""
    recorded: Recorded | None = None
    #: Whether ``--fault-replay`` made them: no seed alone makes such a run.
    replayed: bool = False


def parametrize(metafunc: pytest.Metafunc) -> None:
    """One test a seed where it asks for ``fpstate_run``, and one in all where it asks for ``fpstate_runs``."""
    if lacking := missing():
        raise pytest.Collector.CollectError(f"fpstate_faults: {lacking}")
    from fault_lab.plan.problem import PlanError

    try:
        name = _fixture(metafunc)
        runs = _runs(metafunc, _arguments(metafunc), name)
    except (_WrongArgumentError, PlanError) as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: fpstate_faults: {error}") from None
    if name == RUN:
        ids = ["replay"] if metafunc.config.option.fault_replay else [f"seed-{seed}" for seed in runs.seeds]
        metafunc.parametrize(RUN, [(runs, seed) for seed in runs.seeds], ids=ids, indirect=True)
    else:
        metafunc.parametrize(RUNS, [runs], ids=[_id(metafunc.config, runs)], indirect=True)


def _id(config: pytest.Config, runs: Runs) -> str:
    if config.option.fault_replay:
        return "replay"
    first = f"seed-{runs.seeds[0]}"
    return f"{runs.mode}-{first}" if runs.mode else first if len(runs.seeds) == 1 else f"{first}..{runs.seeds[-1]}"


def _fixture(metafunc: pytest.Metafunc) -> str:
    asked = [name for name in (RUN, RUNS) if name in metafunc.fixturenames]
    if len(asked) != 1:
        got = "both" if asked else "neither"
        raise _WrongArgumentError(f"expected a test that asks for {RUN} or {RUNS}, got {got}")
    return asked[0]


def _arguments(metafunc: pytest.Metafunc) -> dict[str, Any]:
    """The arguments: of the marker that is nearest, and of those around it what it does not say."""
    found: dict[str, Any] = {}
    for mark in metafunc.definition.iter_markers("fpstate_faults"):
        if len(mark.args) > 1:
            raise _WrongArgumentError(f"expected one argument without a name, the plan, got {len(mark.args)}")
        if mark.args and "plan" in mark.kwargs:
            raise _WrongArgumentError("plan: expected it once, got it with its name and without")
        said = {"plan": mark.args[0], **mark.kwargs} if mark.args else mark.kwargs
        found = {**said, **found}
    return found


def _runs(metafunc: pytest.Metafunc, given: dict[str, Any], fixture: str) -> Runs:
    for name in given:
        if name not in _ARGUMENTS:
            raise _WrongArgumentError(f"{name}: expected one of the arguments {', '.join(_ARGUMENTS)}")
    if metafunc.config.option.fault_replay:
        return _replayed(metafunc.config, Path(metafunc.config.option.fault_replay), given)
    plan, word = _plan(metafunc, given)
    searched = plan.search if fixture == RUNS else None
    mode = _text("mode", given.get("mode", ""))
    if mode and fixture == RUN:
        raise _WrongArgumentError(
            f"mode: expected a test that asks for {RUNS}: how many runs there are is not known before"
        )
    if searched is not None and not mode and searched.mode and "seeds" not in given:
        mode = _mode_name(searched.mode)
    bound = _number("runs", given.get("runs", searched.runs if searched is not None and mode else 0))
    depth = _number("depth", given.get("depth", searched.depth if searched is not None else 0), most=100)
    if "depth" in given and mode != "pct":
        raise _WrongArgumentError("depth: expected the mode pct with it")
    seeds = _seeds(metafunc.config, given, plan.seed, 0 if mode else bound)
    if mode:
        _check_mode(plan, mode)
    return Runs(plan, seeds, word, mode, bound, depth, _violation(given))


def _plan(metafunc: pytest.Metafunc, given: dict[str, Any]) -> tuple[plan_pb2.Plan, str]:
    from fpstated.testing.plans import GivenPlanError, read_plan, with_checks

    option = given_plan(metafunc.config)
    if not option and "plan" not in given:
        raise _WrongArgumentError("plan: expected one, in the marker or with --fault-plan")
    name = "--fault-plan" if option else "plan"
    try:
        beside = metafunc.config.invocation_params.dir if option else metafunc.definition.path.parent
        found = read_plan(option or given["plan"], beside)
        names = _names(given.get("checks", ()))
        if not names:
            return found.plan, found.word
        name = "checks"
        return with_checks(found.plan, names), ""
    except GivenPlanError as error:
        raise _WrongArgumentError(f"{name}: {error}") from None


def _replayed(config: pytest.Config, path: Path, given: dict[str, Any]) -> Runs:
    """A recorded run, or a plan that is a schedule with a seed of its own."""
    from fault_lab.plan.load import load_plan
    from fault_lab.sim.record import RecordError, read_record

    path = Path(config.invocation_params.dir, path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _WrongArgumentError(f"--fault-replay: {error}") from None
    if '"plan_sha256"' in text.partition("\n")[0]:
        try:
            recorded = read_record(text)
            recorded.check_version()
        except RecordError as error:
            raise _WrongArgumentError(f"--fault-replay: {path}: {error}") from None
        return Runs(recorded.plan, (recorded.seed,), violation=_violation(given), recorded=recorded, replayed=True)
    plan = load_plan(text, str(path))
    if plan.faults:
        raise _WrongArgumentError(
            f"--fault-replay: expected a recorded run, or a plan without chance, got {path} with faults"
        )
    return Runs(plan, (plan.seed,), str(path), violation=_violation(given), replayed=True)


# -- arguments ---------------------------------------------------------------------------------------------------------


def _seeds(config: pytest.Config, given: dict[str, Any], own: int, count: int) -> tuple[int, ...]:
    """The seeds: those of the option, of the marker, or as many as there are to be runs from the plan's own on."""
    if config.option.fault_seed is not None:
        return (int(config.option.fault_seed),)
    if "seeds" not in given:
        return tuple(nr & _SEED_MAX for nr in range(own, own + max(count, 1)))
    if count:
        raise _WrongArgumentError("runs: expected a mode with it, or no seeds beside it")
    seeds = _seed_list(given["seeds"])
    if not 0 < len(seeds) <= _SEEDS_MAX or len(set(seeds)) != len(seeds):
        raise _WrongArgumentError(f"seeds: expected 1 to {_SEEDS_MAX} seeds, each once, got {given['seeds']!r}")
    return seeds


def _seed_list(given: object) -> tuple[int, ...]:
    match given:
        case bool():
            pass
        case int() if 0 <= given <= _SEED_MAX:
            return (given,)
        case str():
            found = re.fullmatch(r"(\d+)\.\.(\d+)", given)
            if found is not None and 0 <= int(found[2]) - int(found[1]) < _SEEDS_MAX and int(found[2]) <= _SEED_MAX:
                return tuple(range(int(found[1]), int(found[2]) + 1))
        case list() | tuple() | range():
            if len(given) > _SEEDS_MAX or all(type(each) is int and 0 <= each <= _SEED_MAX for each in given):
                return tuple(given[: _SEEDS_MAX + 1])
    raise _WrongArgumentError(f'seeds: expected a number, a list of numbers, a range, or a text "A..B", got {given!r}')


def _check_mode(plan: plan_pb2.Plan, mode: str) -> None:
    from fpstate.fault.v1 import plan_pb2

    from fault_lab.search.run import SearchModeError, mode_of, search

    try:
        found = mode_of(mode)
        if found != plan_pb2.SEARCH_MODE_EXHAUSTIVE:
            search(plan, found, seed=0)
    except SearchModeError as error:
        raise _WrongArgumentError(str(error)) from None


def _mode_name(mode: plan_pb2.SearchMode.ValueType) -> str:
    from fault_lab.search.run import mode_name

    return mode_name(mode)


def _violation(given: dict[str, Any]) -> str:
    from fault_lab.sim.rules import ALWAYS, EVENTUALLY

    found = _text("violation", given.get("violation", ""))
    if found and found not in ALWAYS and found not in EVENTUALLY:
        raise _WrongArgumentError(f"violation: expected one of {', '.join((*ALWAYS, *EVENTUALLY))}, got {found!r}")
    return found


def _names(given: object) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(each, str) for each in found):
        raise _WrongArgumentError(f"checks: expected the name of a check, or a list of names, got {given!r}")
    return found


def _text(name: str, given: object) -> str:
    if not isinstance(given, str):
        raise _WrongArgumentError(f"{name}: expected a text, got {given!r}")
    return given


def _number(name: str, given: object, most: int = _SEEDS_MAX) -> int:
    if type(given) is not int or not 0 <= given <= most:
        raise _WrongArgumentError(f"{name}: expected a number of 1 to {most}, got {given!r}")
    return given
