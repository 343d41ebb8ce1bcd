"""A plan's text, YAML or JSON, read into the message; every value by the type of its field, so nothing is guessed.

JSON is read as the YAML it is. Names of fields may be written as the proto has them, in kebab-case as the kernel writes
its attributes, or in the lowerCamelCase of the JSON mapping. Several messages have short forms: ``short``.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Final, cast

import yaml
from fpstate.fault.v1 import plan_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from fault_lab.plan.problem import PlanError, Problem
from fault_lab.plan.short import PROBABILITY, ShortError, fill_short, has_short_form, percent_ppm

#: A plan is written by people: more than this is something else.
TEXT_MAX: Final = 1 << 20
_NODES_MAX: Final = 100_000
_PROBLEMS_MAX: Final = 50

_F: Final = FieldDescriptor
_INTEGERS: Final = {
    _F.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    _F.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    _F.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    _F.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_INTEGER: Final = re.compile(r"-?(?:0x[0-9a-fA-F][0-9a-fA-F_]*|[0-9][0-9_]*)")
_UNPRINTABLE: Final = re.compile(r"[\x7f-\x9f\u2028\u2029\ufffe\uffff]")
_BOOLEANS: Final = {"true": True, "false": False, "Y": True, "N": False}


class ReadPlan:
    """A plan and where each of its fields stands."""

    def __init__(self, plan: plan_pb2.Plan, positions: dict[str, tuple[int, int]]) -> None:
        self.plan = plan
        self.positions = positions


def read_text(text: str, source: str) -> ReadPlan:
    """Read a plan's text; what it means is not looked at. Raises ``PlanError`` with every mistake in it."""
    if len(text) > TEXT_MAX:
        raise PlanError(source, [Problem("", f"at most {TEXT_MAX} characters", str(len(text)))])
    try:
        root = yaml.compose(_json_as_yaml(text) if text.lstrip().startswith("{") else text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise PlanError(source, [_syntax(error)]) from error
    except RecursionError:
        raise PlanError(source, [Problem("", "a plan", "a text that is nested without an end", 1, 1)]) from None
    reader = _Reader()
    plan = plan_pb2.Plan()
    if root is None:
        raise PlanError(source, [Problem("", "a plan", "an empty text", 1, 1)])
    reader.message(root, plan, "")
    if reader.problems:
        raise PlanError(source, reader.problems[:_PROBLEMS_MAX])
    return ReadPlan(plan, reader.positions)


def _json_as_yaml(text: str) -> str:
    """JSON that YAML reads alike: no tabs between tokens, and escapes for characters that YAML does not print.

    Neither a tab nor a line feed stands in a string of JSON, and what is escaped here stands nowhere else.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\t", " "))


def _syntax(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    said = " ".join(str(part) for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    return Problem("", "YAML or JSON", said or str(error), line, column)


class _Reader:
    """One reading. ``problems`` are in the order of the text."""

    def __init__(self) -> None:
        self.positions: dict[str, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self._nodes = 0

    def problem(self, node: yaml.Node, path: str, expected: str, got: str | None = None) -> None:
        """Note a mistake at a node."""
        found = _shown(node) if got is None else got
        self.problems.append(Problem(path, expected, found, *_position(node)))

    # -- messages ------------------------------------------------------------------------------------------------------

    def message(self, node: yaml.Node, message: Message, path: str) -> None:
        """Fill a message from a mapping, or from its short form."""
        if self._full(node, path):
            return
        self.positions[path] = _position(node)
        descriptor = _descriptor(message)
        if isinstance(node, yaml.ScalarNode) and has_short_form(descriptor.full_name):
            self._short(node, message, path)
        elif isinstance(node, yaml.MappingNode):
            self._fields(node, message, path)
        else:
            self.problem(
                node, path, f"a mapping with {_names(descriptor)}" if descriptor.fields else "an empty mapping, {}"
            )

    def _full(self, node: yaml.Node, path: str) -> bool:
        """Count a message or an item of a list; aliases may make a small text a large tree."""
        self._nodes += 1
        if self._nodes == _NODES_MAX + 1:
            self.problem(node, path, f"at most {_NODES_MAX} fields and items", "more")
        return self._nodes > _NODES_MAX

    def _short(self, node: yaml.ScalarNode, message: Message, path: str) -> None:
        try:
            fill_short(message, node.value.strip())
        except (ShortError, ValueError) as error:
            expected = str(error) if isinstance(error, ShortError) else "a number within its range"
            self.problem(node, path, expected)
        message.SetInParent()

    def _fields(self, node: yaml.MappingNode, message: Message, path: str) -> None:
        message.SetInParent()
        descriptor = _descriptor(message)
        seen: dict[str, str] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problem(key, path, "the name of a field")
                continue
            field = _field(descriptor, key.value)
            if field is None:
                self._unknown(key, descriptor, path)
                continue
            at = f"{path}.{field.name}" if path else field.name
            group = field.containing_oneof.name if field.containing_oneof is not None else field.name
            before = seen.setdefault(group, field.name)
            if at in self.positions:
                self.problem(key, at, "it once", "it again")
            elif before != field.name:
                self.problem(key, at, f"{before} or {field.name}", "both")
            elif key.value == PROBABILITY:
                self._probability(value, message, at)
            else:
                self._field(value, message, field, at)

    def _unknown(self, key: yaml.ScalarNode, descriptor: Descriptor, path: str) -> None:
        names = [field.name for field in descriptor.fields]
        near = difflib.get_close_matches(key.value.replace("-", "_"), names, n=1)
        hint = f" such as {near[0]}" if near else f": {_names(descriptor)}"
        self.problem(key, path, f"a field of {descriptor.name}{hint}", repr(key.value))

    def _probability(self, node: yaml.Node, message: Any, path: str) -> None:  # noqa: ANN401 -- FaultAttributes
        self.positions[path] = _position(node)
        try:
            message.probability_ppm = percent_ppm(node.value if isinstance(node, yaml.ScalarNode) else "")
        except ShortError as error:
            self.problem(node, path, str(error))

    # -- fields --------------------------------------------------------------------------------------------------------

    def _field(self, node: yaml.Node, message: Message, field: FieldDescriptor, path: str) -> None:
        self.positions[path] = _position(node)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._map(node, message, field, path)
        elif field.is_repeated:
            self._list(node, message, field, path)
        elif field.message_type is not None:
            self.message(node, getattr(message, field.name), path)
        else:
            value = self._scalar(node, field, path)
            if value is not None:
                setattr(message, field.name, value)

    def _map(self, node: yaml.Node, message: Message, field: FieldDescriptor, path: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            self.problem(node, path, "a mapping of texts")
            return
        for key, value in node.value:
            texts = [_text(each) for each in (key, value)]
            if None in texts:
                self.problem(key, path, "a text with a text")
            else:
                getattr(message, field.name)[texts[0]] = texts[1]

    def _list(self, node: yaml.Node, message: Message, field: FieldDescriptor, path: str) -> None:
        if not isinstance(node, yaml.SequenceNode):
            self.problem(node, path, "a list")
            return
        target = getattr(message, field.name)
        for nr, item in enumerate(node.value):
            at = f"{path}[{nr}]"
            if field.message_type is not None:
                self.message(item, target.add(), at)
            elif not self._full(item, at):
                self.positions[at] = _position(item)
                value = self._scalar(item, field, at)
                if value is not None:
                    target.append(value)

    def _scalar(self, node: yaml.Node, field: FieldDescriptor, path: str) -> Any:  # noqa: ANN401 -- as the field has it
        """The value of a scalar field, None where it is none."""
        if not isinstance(node, yaml.ScalarNode) or (node.style is None and node.tag.endswith(":null")):
            self.problem(node, path, _kind(field))
            return None
        text = node.value.strip()
        value: Any = None
        if field.cpp_type in _INTEGERS:
            value = _integer(text, *_INTEGERS[field.cpp_type])
        elif field.cpp_type == _F.CPPTYPE_BOOL:
            value = _BOOLEANS.get(text)
        elif field.enum_type is not None:
            value = _enum(text, field.enum_type)
        else:
            value = _text(node)
        if value is None:
            self.problem(node, path, _kind(field))
        return value


# -- values ------------------------------------------------------------------------------------------------------------


def _text(node: yaml.Node) -> str | None:
    """A scalar's text, pairs of surrogates as JSON escapes them joined; None for anything else."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    try:
        return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None


def _integer(text: str, least: int, most: int) -> int | None:
    if not _INTEGER.fullmatch(text):
        return None
    value = int(text.replace("_", ""), 0 if "x" in text else 10)
    return value if least <= value <= most else None


def _enum(text: str, enum: EnumDescriptor) -> int | None:
    """By its name, or by what is left of it without the name of the enum: ``PHASE_NAME_CHAOS``, ``chaos``."""
    wanted = text.upper().replace("-", "_")
    found = enum.values_by_name.get(wanted) or enum.values_by_name.get(f"{_prefix(enum)}{wanted}")
    return found.number if found is not None and found.number else None


def _prefix(enum: EnumDescriptor) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"


def _kind(field: FieldDescriptor) -> str:
    """What a scalar field takes, in words."""
    if field.enum_type is not None:
        prefix = _prefix(field.enum_type)
        return f"one of {', '.join(each.name.removeprefix(prefix).lower() for each in field.enum_type.values[1:])}"
    if field.cpp_type == _F.CPPTYPE_BOOL:
        return "true or false"
    if field.cpp_type in _INTEGERS:
        least, most = _INTEGERS[field.cpp_type]
        return f"a number of {least} to {most}"
    return "a text"


def _field(descriptor: Descriptor, name: str) -> FieldDescriptor | None:
    """By its name in the proto, in kebab-case or in JSON; an action without its last word, a probability in percent."""
    plain = name.replace("-", "_")
    fields = descriptor.fields_by_name
    if name == PROBABILITY:
        return fields.get("probability_ppm")
    by_json = (field for field in descriptor.fields if field.json_name == name)
    return fields.get(plain) or fields.get(f"{plain}_action") or next(by_json, None)


def _descriptor(message: Message) -> Descriptor:
    """The descriptor of a message; the types of protobuf's two implementations differ, and are one to us."""
    return cast("Descriptor", message.DESCRIPTOR)


def _names(descriptor: Descriptor) -> str:
    return ", ".join(field.name for field in descriptor.fields)


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value[:60]) if node.value or node.style else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
