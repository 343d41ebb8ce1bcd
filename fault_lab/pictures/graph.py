"""A graph of states, as the exhaustive search writes it: read, checked, and made ready to be walked on a page.

    {"nodes": [{"id": 0, "fingerprint": "...", "depth": 0, ...}, ...],
     "edges": [{"from": 0, "to": 1, "action": "...", "fault": null}, ...],
     "violations": [{"check": "...", "text": "...", "from": 12, "action": "...", "path": [0, 3, 12]}, ...]}

What else a node has is its summary: values, lists of texts, lists of objects; all of it is shown.
"""

from __future__ import annotations

import json
from typing import Any, Final

from fault_lab.pictures.recording import PictureError
from fpu_core.xfeature import XFEATURE_NAMES

#: What stands above the page, where the file has it.
_FACTS: Final = ("plan_sha256", "states", "transitions", "depth", "exhausted", "shown", "bounds")


def read_graph(text: str) -> dict[str, Any]:
    """Read a graph as values for the page. Raises ``PictureError``, which names the field."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PictureError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise PictureError("expected an object with nodes and edges")
    nodes = _objects(found, "nodes")
    if not nodes:
        raise PictureError("nodes: expected one or more")
    ids = {_known(node, "id", f"nodes[{nr}]", None) for nr, node in enumerate(nodes)}
    if len(ids) < len(nodes):
        raise PictureError("nodes: expected each id once")
    edges, violations = _objects(found, "edges"), _objects(found, "violations", optional=True)
    for nr, edge in enumerate(edges):
        _known(edge, "from", f"edges[{nr}]", ids)
        _known(edge, "to", f"edges[{nr}]", ids)
    for nr, violation in enumerate(violations):
        _path(violation.get("path"), f"violations[{nr}].path", ids)
    return {
        "name": str(found.get("plan") or "states"),
        "facts": {name: found[name] for name in _FACTS if name in found},
        "first": nodes[0]["id"],
        "nodes": nodes,
        "edges": edges,
        "violations": violations,
        "features": {str(nr): name for nr, name in XFEATURE_NAMES.items()},
    }


def _objects(found: dict[str, Any], name: str, *, optional: bool = False) -> list[dict[str, Any]]:
    values = found.get(name, [] if optional else None)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise PictureError(f"{name}: expected a list of objects")
    return values


def _known(value: dict[str, Any], name: str, where: str, ids: set[int] | None) -> int:
    number = value.get(name)
    if not isinstance(number, int) or (ids is not None and number not in ids):
        raise PictureError(f"{where}.{name}: expected the id of a node, got {number!r}")
    return number


def _path(path: object, where: str, ids: set[int]) -> None:
    if not isinstance(path, list) or not path or not all(isinstance(nr, int) and nr in ids for nr in path):
        raise PictureError(f"{where}: expected ids of nodes, one or more")
