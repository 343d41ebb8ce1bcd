"""The options of the plugin. Nothing is loaded here that a run of pytest without faults would have to pay for."""

from __future__ import annotations

import random
import re
from argparse import ArgumentTypeError
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from fpstated.testing.run import Ran
    from fpstated.testing.sim_world import SimWorld

MARKER: Final = (
    "fpstate_faults(plan, seeds, mode, runs, depth, checks, violation): runs of a plan in the simulated world, for the"
    " fixtures fpstate_run and fpstate_runs: docs/testing.md"
)
#: What ran for a test: for its report.
RAN: pytest.StashKey[Ran] = pytest.StashKey()
#: The worlds that a test has made: likewise.
WORLDS: pytest.StashKey[list[SimWorld]] = pytest.StashKey()
_TOLD: Final = "fpstate_fault_seed"
_DRAWN: pytest.StashKey[bool] = pytest.StashKey()
_SEED_MAX: Final = (1 << 64) - 1
_SHRINK_RUNS: Final = 1000
#: What a base install lacks, by the names of the modules.
_NEEDED: Final = ("numpy", "yaml", "apsw", "grpc_health", "prometheus_client")


def add_options(parser: pytest.Parser) -> None:
    """Register them."""
    group = parser.getgroup("faults", "fpstated: plans of faults")
    add = group.addoption
    add("--fault-seed", metavar="N|random", type=_seed, help="run marked tests with this seed alone, or with one drawn")
    add("--fault-plan", metavar="PLAN", help="the plan of marked tests: a file, or the name of a shipped one")
    add("--fault-replay", metavar="FILE", help="run exactly this: a recorded run, or a plan that is a schedule")
    add(
        "--fault-shrink",
        metavar="RUNS",
        type=_runs,
        nargs="?",
        const=_SHRINK_RUNS,
        help=f"make failing runs small, with at most so many runs ({_SHRINK_RUNS}); write the plan and a test",
    )
    add("--fault-artifacts", metavar="DIR", help="where plan, history and page of a failed test go, and stay")
    add("--fault-live", action="store_true", default=None, help="run marked tests' plans on real processes")
    for name, kind, text in (
        ("fault_seed", "string", "as --fault-seed"),
        ("fault_plan", "string", "as --fault-plan, relative to this file"),
        ("fault_artifacts", "string", "as --fault-artifacts, relative to this file"),
        ("fault_shrink", "string", "as --fault-shrink=RUNS"),
    ):
        parser.addini(name, text, type=kind, default="")  # type: ignore[arg-type] # a literal, in the loop


def _seed(text: str) -> int | str:
    if text == "random":
        return text
    if not re.fullmatch(r"[0-9]+", text) or int(text) > _SEED_MAX:
        raise ArgumentTypeError(f"expected a number of 0 to {_SEED_MAX}, or random, got {text!r}")
    return int(text)


def _runs(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", text):
        raise ArgumentTypeError(f"expected --fault-shrink=RUNS, or the option behind the paths, got {text!r}")
    return int(text)


def settle_seed(config: pytest.Config) -> None:
    """Draw the seed of a session: once, where the session begins, so that every worker has the same."""
    option = config.option
    if option.fault_seed is None and config.getini("fault_seed"):
        option.fault_seed = _ini(config, "fault_seed", _seed)
    if option.fault_shrink is None and config.getini("fault_shrink"):
        option.fault_shrink = _ini(config, "fault_shrink", _runs)
    config.stash[_DRAWN] = option.fault_seed == "random"
    if config.stash[_DRAWN]:
        told: dict[str, int] = getattr(config, "workerinput", {})
        option.fault_seed = told.get(_TOLD) or random.SystemRandom().randrange(1, 1 << 32)
    if option.fault_replay and (option.fault_seed is not None or option.fault_plan):
        raise pytest.UsageError("--fault-replay: expected neither --fault-seed nor --fault-plan beside it")


def tell_worker(config: pytest.Config, told: dict[str, int]) -> None:
    """Give a worker of xdist the seed that was drawn: it reads the words of the session again."""
    if config.stash[_DRAWN]:
        told[_TOLD] = config.option.fault_seed


def _ini(config: pytest.Config, name: str, read: Any) -> Any:  # noqa: ANN401 -- what read makes of it
    try:
        return read(config.getini(name))
    except ArgumentTypeError as error:
        raise pytest.UsageError(f"{name}: {error}") from None


def header(config: pytest.Config) -> list[str]:
    """The line of the header: nothing where no seed was given."""
    seed = config.option.fault_seed
    if seed is None:
        return []
    drawn = f" (drawn; --fault-seed {seed} repeats it)" if config.stash[_DRAWN] else ""
    return [f"fault seed: {seed}{drawn}"]


def given_plan(config: pytest.Config) -> str:
    """The plan that was given for all tests; empty where none was."""
    if config.option.fault_plan:
        return str(config.option.fault_plan)
    return _beside_the_ini_file(config, "fault_plan")


def given_artifacts(config: pytest.Config) -> Path | None:
    """Where artefacts are to go, None for pytest's own folder."""
    if config.option.fault_artifacts:
        return Path(config.invocation_params.dir, config.option.fault_artifacts)
    found = _beside_the_ini_file(config, "fault_artifacts")
    return Path(found) if found else None


def _beside_the_ini_file(config: pytest.Config, name: str) -> str:
    text = str(config.getini(name))
    there = config.inipath.parent / text if text and config.inipath else None
    return str(there) if there is not None and (there.exists() or name == "fault_artifacts") else text


def missing() -> str:
    """What to install where this is a guest's install; empty where everything is there."""
    if all(find_spec(name) for name in _NEEDED):
        return ""
    return "this install is a guest's; this needs: pip install 'fpstated[testing]'"


def need_everything() -> None:
    """Fail the test that asked, and say what to install, where this is a guest's install."""
    if lacking := missing():
        pytest.fail(lacking, pytrace=False)
