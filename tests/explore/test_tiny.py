"""The smallest world, whole: every state and every transition as they are written, and what the command says of it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from fault_lab.explore.bounds import Bounds
from fault_lab.explore.graph import FORMAT, graph, graph_json
from fault_lab.explore.run import explore
from fault_lab.plan.load import load_plan
from fpstated.sim.app import sim

HERE = Path(__file__).parent
TINY = load_plan((HERE / "tiny.yaml").read_text(encoding="utf-8"), "tiny.yaml")
ONE_FAULT = Bounds(faults=1)


def test_every_state_of_the_tiny_world() -> None:
    """The graph is ``tiny.json``, to the byte: 50 states, each with where everybody is and what is on its way.

    Made by ``fpstated sim explore tests/explore/tiny.yaml --faults 1 --graph tests/explore/tiny.json``.
    """
    assert graph_json(explore(TINY, ONE_FAULT)) == (HERE / "tiny.json").read_text(encoding="utf-8")


def test_the_longest_way_through_the_tiny_world() -> None:
    """What happens on the way to the state that is farthest away: the story of the founding mail, in order."""
    explored = explore(TINY, ONE_FAULT)
    farthest = max(range(explored.states), key=lambda nr: explored.space.depths[nr])
    assert [move.text for move in explored.space.path(farthest)] == [
        "host: ctl acquires control 1",
        "ctl: has control 1",
        "host: vms/a opens session 1",
        "vms/a: has session 1",
        "host: vms/a/vcpus/0 sends 1 Xsetbv; fpstate.realloc.alloc fails with 12",
        "vms/a/vcpus/0: hears pending on vms/a/vcpus/0/exits/1 generation 1",
        "ctl: sees vms/a/vcpus/0/exits/1 generation 1 OPEN, decides RETRY",
        "host: ctl decides RETRY for vms/a/vcpus/0/exits/1 generation 1",
        "ctl: sees vms/a/vcpus/0/exits/1 generation 1 RESOLVED",
        "host: vms/a/vcpus/0 waits for 1",
        "vms/a/vcpus/0: hears done, grown from 2560 to 10752 bytes",
        "host: vms/a/vcpus/0 sends 2 Hlt",
        "vms/a/vcpus/0: hears done",
    ]


def test_a_capped_graph_says_so() -> None:
    """A cap keeps the states that are nearest, and the edges between them; the counts are of all."""
    found = graph(explore(TINY, ONE_FAULT), shown_max=10)
    assert (found["format"], found["states"], found["shown"], len(found["nodes"])) == (FORMAT, 50, 10, 10)
    assert all(edge["from"] < 10 and edge["to"] < 10 for edge in found["edges"])


def test_the_command() -> None:
    """Status 0 and one sentence: within which bounds nothing was found, and whether there is anything left."""
    result = CliRunner().invoke(sim, ["explore", str(HERE / "tiny.yaml"), "--faults", "1"])
    assert result.exit_code == 0
    assert result.stdout == (
        "no violation within bounds: faults 1, drops 1, duplicates 1, crashes 1, preemptions any: "
        "50 states, 59 transitions, depth 13; the space is exhausted\n"
    )


def test_the_command_for_machines() -> None:
    """--json has the same in fields; what was cut is named, and is status 2."""
    result = CliRunner().invoke(sim, ["explore", str(HERE / "tiny.yaml"), "--states", "20", "--depth", "5", "--json"])
    assert result.exit_code == 2
    said = json.loads(result.stdout.splitlines()[0])
    assert (said["cut"], said["exhausted"]) == (["depth"], False)
    assert (said["violations"], said["plan"]) == ([], "tiny")


def test_words_that_cannot_be_right() -> None:
    """Symmetry lets a guest stand in for another one, so it is refused together with what must come about for each."""
    result = CliRunner().invoke(sim, ["explore", str(HERE / "tiny.yaml"), "--liveness"])
    assert result.exit_code == 2
    assert "--liveness: expected --no-symmetry with it" in result.stderr


def test_what_is_not_explored_is_named(tmp_path: Path) -> None:
    """A fault at a point that a small world does not have is left out, and said to be."""
    plan = tmp_path / "disk.yaml"
    text = (HERE / "tiny.yaml").read_text(encoding="utf-8")
    plan.write_text(f"{text}  - {{name: disk-full, point: journal.write, action: ENOSPC}}\n", encoding="utf-8")
    result = CliRunner().invoke(sim, ["explore", str(plan), "--faults", "0"])
    assert result.exit_code == 0
    assert result.stderr == ("fpstated sim explore: not explored, since a small world has no such point: disk-full\n")
