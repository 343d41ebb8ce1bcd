"""The registry of reasons: every refusal of the machine is in the contract, with the metadata the contract promises."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from host_agent.errors import Reason

ROOT = Path(__file__).parent.parent
REGISTRY = ROOT / "protos" / "fpstate" / "v1" / "errors.proto"


def _promised() -> dict[str, set[str]]:
    """Reason -> the metadata keys its comment promises; those marked `?` may be left out."""
    found = {}
    for comment, name in re.findall(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = \d+;", REGISTRY.read_text()):
        text = re.sub(r"\s*//\s*", " ", comment)
        _, _, metadata = text.partition("Metadata: ")
        flat = re.sub(r"\([^()]*\)", lambda match: "?" if match[0].startswith("(?") else "", metadata)
        words = re.findall(r"\b([a-z][A-Za-z]*)( ?\?)?(?=,|\.| and| or|$)", flat)
        found[name] = {key for key, optional in words if not optional and key not in ("none", "and", "or")}
    return found


def _raised() -> list[tuple[str, str, set[str]]]:
    """Every ``Refused(Reason.X, ...)`` in the machine: where, which, and its metadata keys."""
    found = []
    for path in sorted((ROOT / "host_agent").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refused" and node.args):
                continue
            reason = node.args[0]
            if isinstance(reason, ast.Attribute):
                keys = {keyword.arg or "" for keyword in node.keywords} - {"field"}
                found.append((f"{path.name}:{node.lineno}", reason.attr, keys))
    return found


def test_every_reason_is_in_the_registry() -> None:
    """A name that a client may meet is a name of the contract."""
    assert {reason.name for reason in Reason} <= set(_promised())


@pytest.mark.parametrize(
    ("where", "reason", "keys"), [pytest.param(*row, id=f"{row[1]} at {row[0]}") for row in _raised()]
)
def test_a_refusal_carries_what_the_registry_promises(where: str, reason: str, keys: set[str]) -> None:
    """Every key a client was promised is there, whatever else is."""
    promised = _promised()[reason] - ({"epoch", "vcpu"} if reason == "SESSION_FENCED" else set())
    missing = promised - keys - ({"field"} if reason == "FIELD_INVALID" else set())
    assert not missing, f"{where}: {reason} lacks {sorted(missing)}"
