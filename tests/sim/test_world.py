"""What is modelled: the order of the agenda, the network's streams and calls, the journal's durable prefix, clocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from fpstate.fault.v1 import plan_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from fault_lab.plan.load import load_plan
from fault_lab.sim.agenda import Agenda
from fault_lab.sim.network import Message
from fault_lab.sim.world import World
from host_agent.commands import CreateVm, SetHostLimit
from host_agent.errors import Refused

STORM = load_plan((Path(__file__).parent / "storm.yaml").read_text(encoding="utf-8"), "storm.yaml")
FIRST = load_plan((Path(__file__).parent / "first.yaml").read_text(encoding="utf-8"), "first.yaml")


def calm(world: World) -> World:
    """The world with its host up and nobody else."""
    world.faults.enter("chaos")
    world.hosts["host"].start()
    return world


def run_out(world: World, until_ns: int) -> None:
    """Let everything happen up to a moment."""
    while (entry := world.agenda.first()) is not None and entry.at_ns <= until_ns:
        world.step(entry)
    world.now_ns = until_ns


@given(st.lists(st.integers(0, 5), max_size=30), st.sets(st.integers(0, 29)))
def test_the_agenda_is_in_order(times: list[int], taken_back: set[int]) -> None:
    """By time, then by the order of asking; what was taken back never comes."""
    agenda = Agenda()
    entries = [agenda.add(at_ns, "", "", lambda: None, -1) for at_ns in times]
    for nr in taken_back & set(range(len(times))):
        entries[nr].cancel()
    came = []
    while (entry := agenda.first()) is not None:
        assert next(agenda.entries()) is entry
        came.append(entry.nr - 1)
        entry.cancel()
    assert came == sorted(set(range(len(times))) - taken_back, key=lambda nr: (times[nr], nr))


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 40))
def test_a_stream_is_in_order_and_has_no_hole(seed: int, count: int) -> None:
    """Whatever the storm does to a link: what arrives of a stream is a beginning of it, in its order."""
    world = calm(World(STORM, seed))
    arrived: list[int] = []
    broken: list[int] = []
    for nr in range(count):
        message = Message("test", lambda nr=nr: arrived.append(nr), lambda nr=nr: broken.append(nr), stream=1)  # type: ignore[misc]
        world.network.send("host", "ctl", message)
    run_out(world, 100_000_000_000)
    end = min(broken, default=count)
    assert [nr for nr in arrived if nr < end] == list(range(min(end, len(arrived))))
    assert len(arrived) + len(broken) >= min(count, 1)


@given(st.integers(0, 1 << 32))
@settings(deadline=None)
def test_a_crash_keeps_a_prefix(seed: int) -> None:
    """Commands, then a kill: what comes back is what the first of them made, and all that was settled is in it."""
    world = calm(World(FIRST, seed))
    host = world.hosts["host"]
    settled: list[int] = []
    for nr in range(20):
        host.apply(SetHostLimit(byte_limit=1_000_000 + nr))
        host.when_durable(lambda nr=nr: settled.append(nr), None)  # type: ignore[misc]
        run_out(world, world.now_ns + (seed >> nr) % 400_000)
    host.end("killed", None)
    host.start()
    limit = host.machine.state.allocator.host.limit_bytes
    assert (limit or 999_999) - 1_000_000 >= max(settled, default=-1)
    assert settled == list(range(len(settled)))


def test_what_is_refused_is_in_the_log_too() -> None:
    """A refusal is a record, as in the real journal."""
    world = calm(World(FIRST, 1))
    host = world.hosts["host"]
    before = host.journal.applied
    with pytest.raises(Refused):
        host.apply(CreateVm(vm_id="NO"))
    assert host.journal.applied == before + 1


def test_a_clock_jumps_and_runs_fast() -> None:
    """A second of the world is one and a tenth by a clock that is 100,000 ppm fast; a span of it is shorter."""
    world = calm(World(FIRST, 1))
    clock = world.hosts["host"].clock
    clock.set(5_000_000_000, 100_000)
    world.now_ns += 1_000_000_000
    assert clock.now_ns() == 6_100_000_000
    assert clock.span_ns(1_100_000_000) == 1_000_000_000


def test_any_entry_may_be_next() -> None:
    """A search may take what is due later first: the same transition, and time never goes back."""
    plan = plan_pb2.Plan()
    plan.CopyFrom(FIRST)
    world = World(plan, 1)
    world.faults.enter("chaos")
    for node in world.nodes.values():
        node.start()
    for _ in range(200):
        entries = list(world.agenda.entries())
        if not entries or world.rules.at_rest():
            break
        before = world.now_ns
        world.step(entries[min(1, len(entries) - 1)])
        assert world.now_ns >= before
    assert world.steps > 10
