"""The commands that draw: what each writes, and what it says when the words are wrong."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from fpstated.sim.app import sim as app
from tests.pictures.graphs import graph_text
from tests.pictures.runs import recorded

FIRST = str(Path(__file__).parent.parent / "sim" / "first.yaml")


def sim(*words: str, status: int = 0) -> tuple[str, str]:
    """Run the command; return its output and its errors."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == status, done.output
    return done.stdout, done.stderr


def test_every_picture_of_a_run(tmp_path: Path) -> None:
    """A page, a still picture, a trace; nothing is printed."""
    run = tmp_path / "run.jsonl"
    sim("run", FIRST, "--history", str(run))
    assert run.read_text() == recorded("first")
    for words, begins in {
        ("timeline", "page.html"): "<!DOCTYPE html>\n",
        ("timeline", "still.svg"): "<svg xmlns=",
        ("perfetto", "trace.json"): '{"displayTimeUnit":"ms",',
    }.items():
        assert sim(words[0], str(run), "-o", str(tmp_path / words[1])) == ("", "")
        assert (tmp_path / words[1]).read_text().startswith(begins)
    sim("timeline", str(run), "-o", str(tmp_path / "part.svg"), "--from", "31", "--to", "45")
    assert "showing records 31 to 45 of 59" in (tmp_path / "part.svg").read_text()


def test_coverage_and_states(tmp_path: Path) -> None:
    """A matrix for people, for machines and as a page; a graph as a page."""
    page, graph = tmp_path / "page.html", tmp_path / "graph.json"
    out, err = sim("coverage", FIRST, "--seeds", "1..2", "-o", str(page))
    assert out.endswith("runs: 2, cells reached: 1 of 20\n")
    assert err == ""
    assert "what 2 runs have reached" in page.read_text()
    out, _ = sim("coverage", FIRST, "--seeds", "1..2", "--json")
    assert json.loads(out)["cells"] == [
        {"point": "fpstate.realloc.alloc", "state": "outside", "decision": "RETRY", "count": 2}
    ]
    graph.write_text(graph_text())
    assert sim("explorer", str(graph), "-o", str(page)) == ("", "")
    assert "<title>small: states</title>" in page.read_text()


def test_words_that_are_wrong(tmp_path: Path) -> None:
    """Status 2, the file, and what was expected; nothing is written."""
    run, out = tmp_path / "run.jsonl", tmp_path / "out.html"
    run.write_text(recorded("first"))
    cases = {
        ("timeline", str(run), "-o", str(tmp_path / "x.png")): "-o: expected a name that ends in .html or .svg",
        ("timeline", FIRST, "-o", str(out)): f"{FIRST}: line 1: not JSON",
        ("timeline", str(run), "-o", str(out), "--from", "99"): f"{run}: --from: expected a record, 0 to 58, got 99",
        ("timeline", str(tmp_path / "none"), "-o", str(out)): "No such file",
        ("perfetto", FIRST, "-o", str(out)): f"{FIRST}: line 1: not JSON",
        ("explorer", str(run), "-o", str(out)): f"{run}: not JSON",
        ("coverage", FIRST, "--seeds", "2..1"): "--seeds: expected A..B with A <= B",
    }
    for words, complaint in cases.items():
        _, err = sim(*words, status=2)
        assert complaint in err, words
    assert not out.exists()
