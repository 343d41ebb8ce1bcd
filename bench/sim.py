"""The simulator: whole runs a second, beside the same host commands on a bare machine, and beside a bare agenda.

A run is ``eight-vcpus.yaml``: eight vCPUs with 25 events each, faults, a controller, every check. What the invariants,
the history and the check of what everybody heard take of it is measured on the same seeds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from fpstate.fault.v1 import plan_pb2

from bench.pairs import Figures, Pairs
from bench.report import Row, by_turns_row, measured
from fault_lab.linear.judge import judge
from fault_lab.plan.load import load_plan
from fault_lab.sim.agenda import Agenda
from fault_lab.sim.history import History
from fault_lab.sim.host import host_config
from fault_lab.sim.journal import Logged
from fault_lab.sim.rules import ALWAYS
from fault_lab.sim.run import simulate
from fault_lab.sim.world import World
from host_agent.errors import Refused
from host_agent.machine import HostMachine

#: Runs of one block, of the seeds from 1 on.
RUNS: Final = 5
PAIRS: Final = 10
#: What the runs a second are to reach.
GOAL: Final = 300.0
#: Entries that are to come at one moment of a run, as good as always.
_TO_COME: Final = 24


def rows(fraction: int = 1) -> Iterator[Row]:
    """Runs a second beside two floors, and three shares, with one ``fraction``-th of the blocks."""
    plan = load_plan(Path(__file__).with_name("eight-vcpus.yaml").read_text(encoding="utf-8"), "eight-vcpus")
    seeds = range(1, RUNS + 1 if fraction == 1 else 2)
    print(f"bench: runs of seeds 1..{len(seeds)}; python -m bench sim repeats them")
    worlds = [_played(plan, seed) for seed in seeds]
    commands = [list(world.hosts["host"].journal.records) for world in worlds]
    steps = sum(world.steps for world in worlds) // len(worlds)
    applied = sum(len(records) for records in commands) // len(worlds)
    pairs = max(2, PAIRS // fraction)

    def whole() -> None:
        for seed in seeds:
            assert simulate(plan, seed).violation is None, "there is nothing to be found"

    def by_turns(floor: Callable[[], None]) -> Pairs:
        figures = Figures()
        figures.alternate(lambda: _rate(whole, len(seeds)), lambda: _rate(floor, len(seeds)), pairs=pairs)
        return figures.pairs()

    title = f"runs of 8 vCPUs, 200 events, {steps} steps, every check"
    machine = by_turns(lambda: _commands(commands, plan))
    yield Row(title, "runs/s", machine.value, None, None, f">= {GOAL:.0f}", machine.value >= GOAL)
    note = f"floor: a bare machine takes a run's {applied} commands, nothing checked. Seconds are the processor's own."
    yield by_turns_row("the same, beside their commands alone", "runs/s", machine, note=note)
    note = "floor: an agenda to which as many entries are added and from which they are taken, and nothing else."
    yield by_turns_row("the same, beside their steps alone", "runs/s", by_turns(lambda: _agenda(worlds)), note=note)
    yield _share("the invariants", by_turns(lambda: _without_invariants(plan, seeds)))
    records = [[_record(line) for line in world.history.lines] for world in worlds]
    yield _part("the history, written again", by_turns(lambda: _written(records)))
    lines = [world.history.lines for world in worlds]
    yield _part("linearizability, judged again", by_turns(lambda: _judged(lines)))


def _share(what: str, pairs: Pairs) -> Row:
    """What a run would be spared without it, of its time; ``pairs`` are runs with and without."""
    return measured(f"{what}: share of a run", "share", 1 - pairs.ratio)


def _part(what: str, pairs: Pairs) -> Row:
    """What it takes of a run's time; ``pairs`` are runs, and it alone."""
    return measured(f"{what}: share of a run", "share", pairs.ratio)


def _rate(run: Callable[[], None], runs: int) -> float:
    begin_s = time.process_time()
    run()
    return runs / (time.process_time() - begin_s)


def _played(plan: plan_pb2.Plan, seed: int) -> World:
    world = World(plan, seed)
    world.run()
    return world


def _commands(commands: list[list[Logged]], plan: plan_pb2.Plan) -> None:
    for records in commands:
        machine = HostMachine(host_config(plan.topology.hosts[0]))
        for record in records:
            with suppress(Refused):
                machine.apply(record.command, record.now_ns)
            machine.take_effects()


def _agenda(worlds: list[World]) -> None:
    for world in worlds:
        agenda = Agenda()
        for nr in range(world.steps):
            agenda.add(nr, "host", "step", _nothing, -1)
            if nr >= _TO_COME and (entry := agenda.first()) is not None:
                entry.cancel()


def _nothing() -> None:
    """What a step of the bare agenda does."""


def _without_invariants(plan: plan_pb2.Plan, seeds: range) -> None:
    others = plan_pb2.Plan()
    others.CopyFrom(plan)
    others.checks.always[:] = [name for name in ALWAYS if name != "invariants"]
    for seed in seeds:
        simulate(others, seed)


def _record(line: str) -> tuple[int, str, dict[str, Any]]:
    record = json.loads(line)
    return record.pop("t"), record.pop("type"), {key: record[key] for key in record if key not in ("n", "cause")}


def _written(runs: list[list[tuple[int, str, dict[str, Any]]]]) -> None:
    for records in runs:
        history = History()
        for t_ns, kind, fields in records:
            history.add(t_ns, kind, **fields)


def _judged(runs: list[list[str]]) -> None:
    for lines in runs:
        judge(lines)
