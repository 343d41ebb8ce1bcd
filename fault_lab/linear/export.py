"""A history for other checkers: Jepsen's EDN and JSON shape, and Porcupine's calls and returns.

Jepsen has one operation a process at a time, and a process that heard ``info`` is never heard of again: what it does
next has a number of its own here. A model for these operations is the reader's to write; keys are the vCPUs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fault_lab.linear.operations import VcpuHistory
from fault_lab.linear.report import told

Record = dict[str, Any]

_TYPES = frozenset({"invoke", "ok", "fail", "info"})


def jepsen(records: Iterator[Record]) -> Iterator[str]:
    """One EDN map a line, as Knossos and elle-cli read it: index, process, type, f, value, time."""
    for index, record in enumerate(_jepsen(records)):
        yield _edn({"index": index, **record})


def _jepsen(records: Iterator[Record]) -> Iterator[Record]:
    numbers: dict[str, int] = {}
    used = 0
    calls: dict[int, tuple[str, Record]] = {}
    for record in records:
        if record["type"] not in _TYPES:
            continue
        name = record["process"]
        if record["type"] == "invoke":
            if "op" not in record:
                continue
            if name not in numbers or any(name == other for other, _ in calls.values()):
                numbers[name], used = used, used + 1
            told_op = {"process": numbers[name], "f": record["f"], "value": record["op"]}
            calls[record["call"]] = name, told_op
            yield {**told_op, "type": "invoke", "time": record["t"]}
        elif record["call"] in calls:
            name, told_op = calls.pop(record["call"])
            if record["type"] == "info" and numbers.get(name) == told_op["process"]:
                del numbers[name]
            value = {**told_op["value"], **({"result": record["result"]} if "result" in record else {})}
            yield {**told_op, "type": record["type"], "value": value, "time": record["t"]}


def _edn(value: object) -> str:
    """A value as EDN; the keys of maps, and what Jepsen has as keywords, become keywords."""
    match value:
        case None:
            return "nil"
        case bool():
            return "true" if value else "false"
        case dict():
            pairs = (f":{key.replace('_', '-')} {_keyword(key, each)}" for key, each in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list() | tuple():
            return "[" + " ".join(_edn(each) for each in value) + "]"
        case _:
            return json.dumps(value)


def _keyword(key: str, value: object) -> str:
    return f":{value}" if key in ("type", "f") else _edn(value)


def porcupine(histories: dict[str, VcpuHistory]) -> str:
    """JSON: by vCPU, operations with Porcupine's fields. ``Return`` is null for what is open to the end."""
    clients: dict[str, int] = {}
    keys = {
        vcpu: [
            {
                "ClientId": clients.setdefault(each.process, len(clients)),
                "Input": {"operation": type(each.what).__name__, **_plain(each.what)},
                "Call": each.call,
                "Output": told(each.what),
                "Return": each.ret,
            }
            for each in history.operations
        ]
        for vcpu, history in histories.items()
    }
    return json.dumps(keys, indent=1) + "\n"


def _plain(what: Any) -> Record:  # noqa: ANN401 -- any operation of the model
    return {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in what._asdict().items()}
