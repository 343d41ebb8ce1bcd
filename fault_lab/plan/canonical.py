"""The one text of a plan, and the hash it is known by.

The JSON mapping of the message (lowerCamelCase, no fields at their defaults), keys sorted by code point, no white
space, UTF-8. No field of a plan is a floating-point number, so every implementation of the mapping gives the same text.
"""

from __future__ import annotations

import hashlib
import json

from fpstate.fault.v1 import plan_pb2
from google.protobuf import json_format


def canonical_json(plan: plan_pb2.Plan) -> str:
    """Return the canonical text, without a line feed at its end."""
    return json.dumps(_tree(plan), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def readable_json(plan: plan_pb2.Plan) -> str:
    """Return the same, indented, in the order and with the names of the schema."""
    tree = json_format.MessageToDict(plan, preserving_proto_field_name=True)
    return json.dumps(tree, ensure_ascii=False, indent=2) + "\n"


def plan_hash(plan: plan_pb2.Plan) -> str:
    """Return the SHA-256 of the canonical text, in hexadecimal."""
    return hashlib.sha256(canonical_json(plan).encode()).hexdigest()


def _tree(plan: plan_pb2.Plan) -> dict[str, object]:
    tree: dict[str, object] = json_format.MessageToDict(plan)
    return tree
