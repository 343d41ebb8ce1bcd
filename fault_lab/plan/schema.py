"""The JSON Schema of a plan file, for editors: names of fields in snake_case and in kebab-case, and the short forms."""

from __future__ import annotations

import json
from typing import Any, Final

from fpstate.fault.v1 import plan_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from fault_lab.injection.points import FAULT_POINTS
from fault_lab.plan.acts import ACTS
from fault_lab.plan.short import PROBABILITY, has_short_form

_F: Final = FieldDescriptor
_UNSIGNED: Final = (_F.CPPTYPE_UINT32, _F.CPPTYPE_UINT64)
_SIGNED: Final = (_F.CPPTYPE_INT32, _F.CPPTYPE_INT64)
#: A scalar may be written as a number or as a text where it is a short form.
_SHORT: Final = {"type": ["string", "number"]}


def json_schema() -> str:
    """Return the schema as JSON, with a line feed at its end."""
    definitions: dict[str, Any] = {}
    root = _message(plan_pb2.Plan.DESCRIPTOR, definitions)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fpstated plan"} | root
    return json.dumps(schema | {"$defs": definitions}, indent=2) + "\n"


def _message(descriptor: Descriptor, definitions: dict[str, Any]) -> dict[str, Any]:
    name = descriptor.name
    if name not in definitions:
        definitions[name] = {}  # a placeholder, so that a message may hold its own kind
        definitions[name] = _definition(descriptor, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _definition(descriptor: Descriptor, definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for field in descriptor.fields:
        value = _field(field, definitions)
        short = field.name.removesuffix("_action") if descriptor.name == "FaultAction" else field.name
        for name in dict.fromkeys((short, short.replace("_", "-"), field.name, field.json_name)):
            properties[name] = value
    if "probability_ppm" in properties:
        properties[PROBABILITY] = {"type": ["number", "string"]}
    if descriptor.name in ("PlannedFault", "ScheduledHit"):
        properties["point"] = {"enum": list(FAULT_POINTS)}
    if descriptor.name == "PlannedTasks":
        properties["acts"]["items"] = {"enum": list(ACTS)}
    made: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"anyOf": [made, _SHORT]} if has_short_form(descriptor.full_name) else made


def _field(field: FieldDescriptor, definitions: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    value = _value(field, definitions)
    return {"type": "array", "items": value} if field.is_repeated else value


def _value(field: FieldDescriptor, definitions: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        return _message(field.message_type, definitions)
    if field.enum_type is not None:
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        names = [each.name for each in field.enum_type.values[1:]]
        return {"enum": [*(name.removeprefix(prefix).lower() for name in names), *names]}
    if field.cpp_type == _F.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if field.cpp_type in (*_UNSIGNED, *_SIGNED):
        least = {"minimum": 0} if field.cpp_type in _UNSIGNED else {}
        return {"anyOf": [{"type": "integer"} | least, {"type": "string", "pattern": "^-?[0-9]|^0x"}]}
    return {"type": "string"}
