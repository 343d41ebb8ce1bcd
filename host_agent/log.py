"""The command log in text: one JSON object a line, the configuration first, then (time, command) records.

    {"config": {...}}
    {"at": 12, "command": {"type": "CreateVm", "vm_id": "a", ...}}
    {"rolled_back": 1}          the disk was full: of the commands above only the first so many have happened

What is in the log is all that ever changed the host, so replaying it leads to the identical digest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, get_args

from fault_lab.injection.action import Action
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.hit import Hit, Selector, Window
from fpu_core.tile import TileOp
from fpu_core.xsave_insn import XsaveInsn
from host_agent import commands, events
from host_agent.errors import Refused
from host_agent.exits import Decision, DecisionKind
from host_agent.kvm.cpuid import CpuidEntry
from host_agent.machine import HostMachine
from host_agent.state import HostConfig

#: Every class a record may hold, by name.
_CLASSES: Final[dict[str, type]] = {
    cls.__name__: cls
    for cls in (
        *get_args(commands.Command),
        *get_args(events.EventKind),
        events.GuestEvent,
        Decision,
        CpuidEntry,
        FaultAttributes,
        *get_args(Action),
        Hit,
        Selector,
        Window,
        HostConfig,
    )
}
_ENUMS: Final[dict[str, type[enum.Enum]]] = {cls.__name__: cls for cls in (TileOp, XsaveInsn, DecisionKind)}


class LogError(ValueError):
    """A line that is not a record of ours. The text names the line number and what is wrong."""


def encode(value: object) -> Any:  # noqa: ANN401 -- JSON values
    """Return ``value`` in JSON's terms: dataclasses with their type, bytes as hex, enums by name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        encoded = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **encoded}
    if isinstance(value, enum.Enum):
        return {"enum": type(value).__name__, "name": value.name}
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"map": [[encode(key), encode(item)] for key, item in value.items()]}
    return value


def decode(value: Any) -> Any:  # noqa: ANN401 -- JSON values
    """Return what ``encode`` was given; lists come back as tuples."""
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "hex" in value:
        return bytes.fromhex(value["hex"])
    if "map" in value:
        return {decode(key): decode(item) for key, item in value["map"]}
    if "enum" in value:
        return _ENUMS[value["enum"]][value["name"]]
    fields = {key: decode(item) for key, item in value.items() if key != "type"}
    return _CLASSES[value["type"]](**fields)


def config_line(config: HostConfig) -> str:
    """The first line of a log."""
    return json.dumps({"config": encode(config)}, separators=(",", ":"))


def record_line(now_ns: int, command: commands.Command) -> str:
    """One record."""
    return json.dumps({"at": now_ns, "command": encode(command)}, separators=(",", ":"))


def rolled_back_line(commands_left: int) -> str:
    """What follows the commands of a host whose disk was full: all but the first so many have not happened."""
    return json.dumps({"rolled_back": commands_left}, separators=(",", ":"))


def read_log(lines: Iterable[str]) -> tuple[HostConfig, list[tuple[int, commands.Command]]]:
    """Read a whole log; ``LogError`` names the first bad line."""
    numbered = enumerate(lines, start=1)
    config = next(_parsed(numbered), None)
    if config is None or not isinstance(config[1].get("config"), dict):
        raise LogError("line 1: expected the configuration of the host")
    settings = _decoded(config[0], config[1]["config"], HostConfig)
    records: list[tuple[int, commands.Command]] = []
    for number, record in _parsed(numbered):
        if "rolled_back" in record:
            kept = record["rolled_back"]
            if not isinstance(kept, int) or not 0 <= kept <= len(records):
                raise LogError(f"line {number}: rolled_back: expected 0 to {len(records)}, got {kept!r}")
            del records[kept:]
            continue
        at = record.get("at")
        if not isinstance(at, int):
            raise LogError(f"line {number}: at: expected nanoseconds, got {at!r}")
        records.append((at, _decoded(number, record.get("command"), commands.Command)))
    return settings, records


def _decoded(number: int, value: object, expected: Any) -> Any:  # noqa: ANN401 -- a class, or a union of some
    """Decode what has to be an ``expected``."""
    try:
        found = decode(value)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise LogError(f"line {number}: not a record: {error!r}") from error
    if not isinstance(found, expected):
        raise LogError(
            f"line {number}: expected {getattr(expected, '__name__', 'a command')}, got {type(found).__name__}"
        )
    return found


def _parsed(numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LogError(f"line {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise LogError(f"line {number}: expected an object")
        yield number, record


def replay(config: HostConfig, records: Iterable[tuple[int, commands.Command]]) -> HostMachine:
    """Carry every record out on a fresh machine. What was refused then is refused again."""
    machine = HostMachine(config)
    for now_ns, command in records:
        with contextlib.suppress(Refused):
            machine.apply(command, now_ns)
        machine.take_effects()
    return machine
