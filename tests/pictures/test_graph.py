"""Graphs of states: which are drawn, and what is said of others."""

from __future__ import annotations

from typing import Any

import pytest

from fault_lab.pictures.explorer_page import explorer_page
from fault_lab.pictures.graph import read_graph
from fault_lab.pictures.recording import PictureError
from tests.pictures.graphs import graph, graph_text
from tests.pictures.runs import HOSTILE


def test_a_graph_is_read() -> None:
    """What the page needs, and the names of the features."""
    values = read_graph(graph_text())
    assert values["name"] == "small"
    assert values["first"] == 0
    assert values["facts"] == {"states": 4, "exhausted": True, "bounds": {"faults": 1, "preemptions": None}}
    assert values["features"]["18"] == "XTILE_DATA"
    assert explorer_page(graph_text()) == explorer_page(graph_text())


NODES: list[Any] = graph()["nodes"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense", "not JSON"),
        ("[]", "expected an object with nodes and edges"),
        (graph_text(nodes=None), "nodes: expected a list of objects"),
        (graph_text(nodes=[]), "nodes: expected one or more"),
        (graph_text(nodes=[*NODES, NODES[0]]), "nodes: expected each id once"),
        (graph_text(nodes=[{"id": "x"}]), "nodes[0].id: expected the id of a node, got 'x'"),
        (graph_text(edges=[{"from": 0, "to": 9}]), "edges[0].to: expected the id of a node, got 9"),
        (graph_text(violations=[{"path": []}]), "violations[0].path: expected ids of nodes, one or more"),
        (graph_text(violations=[{"path": [7]}]), "violations[0].path: expected ids of nodes, one or more"),
    ],
)
def test_what_is_no_graph(text: str, complaint: str) -> None:
    """The field, and what was expected."""
    with pytest.raises(PictureError) as error:
        explorer_page(text)
    assert complaint in str(error.value)


def test_hostile_texts_stay_texts() -> None:
    """In a node, an action, a check and the plan's name."""
    nodes = [{**node, HOSTILE: HOSTILE, "flight": [HOSTILE]} for node in graph()["nodes"]]
    page = explorer_page(graph_text(plan=HOSTILE, nodes=nodes))
    assert page.count("</script>") == 2
    assert "<img" not in page
