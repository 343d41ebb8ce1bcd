"""The command log in text: one JSON object a line, the configuration first, then (time, command) records.

    {"config": {...}}
    {"at": 12, "command": {"type": "CreateVm", "vm_id": "a", ...}}

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


def read_log(lines: Iterable[str]) -> tuple[HostConfig, list[tuple[int, commands.Command]]]:
    """Read a whole log; ``LogError`` names the first bad line."""
    numbered = enumerate(lines, start=1)
    config = next(_parsed(numbered), None)
    if config is None or not isinstance(config[1].get("config"), dict):
        raise LogError("line 1: expected the configuration of the host")
    records = []
    for number, record in _parsed(numbered):
        try:
            records.append((int(record["at"]), decode(record["command"])))
        except (KeyError, TypeError, ValueError) as error:
            raise LogError(f"line {number}: not a command record: {error!r}") from error
    return decode(config[1]["config"]), records


def _parsed(numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered:
        try:
            record = json.loads(line)
        except ValueError as error:
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
