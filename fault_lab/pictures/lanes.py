"""Lanes: who was there, in the order of the founding mail turned upside down: controllers, hosts, guests, vCPUs.

A node that no plan names is found in the records, so a picture needs nothing but them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fault_lab.pictures.recording import Record, Recording
from fault_lab.pictures.words import short

_VCPU = re.compile(r"^(vms/[^/]+)/vcpus/([0-9]+)$")
#: The letters of the lanes in the founding mail; a vCPU is its guest's.
LETTERS = {"controller": "U", "host": "H", "guest": "G", "vcpu": "G"}


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane. ``name`` is the resource's or the node's; ``kind`` a key of ``LETTERS``."""

    name: str
    kind: str

    @property
    def label(self) -> str:
        """What stands in front of it."""
        return short(self.name)


class Lanes:
    """The lanes of a recording, and which of them a record belongs to."""

    def __init__(self, recording: Recording) -> None:
        self._records = recording.records
        self._calls = {
            record.number("call"): record.text("process") for record in recording.records if record.type == "invoke"
        }
        kinds = _kinds(recording)
        order = {"controller": 0, "host": 1, "guest": 2, "vcpu": 2}
        names = sorted(kinds, key=lambda name: (order[kinds[name]], _natural(name)))
        self.all = [Lane(name, kinds[name]) for name in names]
        self._index = {lane.name: nr for nr, lane in enumerate(self.all)}
        hosts = [lane.name for lane in self.all if lane.kind == "host"]
        self._host = hosts[0] if hosts else ""

    def index(self, name: str) -> int:
        """The number of a lane; -1 for none."""
        return self._index.get(name, -1)

    def of(self, record: Record) -> int:
        """The lane that a record stands in; -1 for the world's own."""
        return self._index.get(self.place(record), -1)

    def place(self, record: Record) -> str:
        """The node or the vCPU that a record is about; empty for the world."""
        text = record.text
        match record.type:
            case "invoke" | "ok" | "fail" | "info":
                return text("process")
            case "message":
                return self.ends(record)[0 if text("lost") in {"dropped", "torn"} else 1]
            case "fault":
                return self._caller(record) or self._entity(text("entity"))
            case "exit":
                return text("exit").rpartition("/exits/")[0]
            case "link":
                return text("link").partition("->")[0]
            case "violation":
                return ""
            case _:
                return text("vcpu") or text("node")

    def ends(self, message: Record) -> tuple[str, str]:
        """Where a message comes from and goes to: of a guest's call that is a vCPU's, the vCPU."""
        source, to = self.nodes(message)
        process = self._calls.get(message.number("call"), "")
        mine = _VCPU.match(process)
        if mine is None:
            return source, to
        return process if source == mine[1] else source, process if to == mine[1] else to

    @staticmethod
    def nodes(message: Record) -> tuple[str, str]:
        """The nodes that a message goes between."""
        source, _, to = message.text("link").partition("->")
        return source, to

    def _caller(self, fault: Record) -> str:
        """Who made the call, where a fault struck it in the client; it follows the call itself, or its reply."""
        if not fault.text("point").startswith("rpc.client.") or fault.cause < 0:
            return ""
        return self._calls.get(self._records[fault.cause].number("call"), "")

    def _entity(self, entity: str) -> str:
        if entity in self._index:
            return entity
        if entity.startswith("/"):  # a method: the host is asked
            return self._host
        return entity.partition("->")[0]


def _kinds(recording: Recording) -> dict[str, str]:
    """The kind of every node and vCPU that the plan or a record names."""
    topology = recording.plan.get("topology")
    planned = topology if isinstance(topology, dict) else {}
    kinds: dict[str, str] = {}
    for field, kind, head in (("hosts", "host", ""), ("controllers", "controller", ""), ("vms", "guest", "vms/")):
        there = planned.get(field)
        for each in there if isinstance(there, list) else ():
            if isinstance(each, dict) and isinstance(each.get("name"), str):
                kinds[head + each["name"]] = kind
    for record in recording.records:
        for name, kind in _named(record):
            kinds.setdefault(name, kind)
    for name in list(kinds):
        found = _VCPU.match(name)
        if found is not None:
            kinds.setdefault(found[1], "guest")
    return kinds


def _named(record: Record) -> Iterable[tuple[str, str]]:
    process, node, vcpu = record.text("process"), record.text("node"), record.text("vcpu")
    for name in (process, vcpu):
        if _VCPU.match(name):
            yield name, "vcpu"
    if record.type in {"vcpu", "exit"}:
        yield node, "host"
    for name in (node, process):
        if name and not _VCPU.match(name) and (record.type in {"invoke", "decision", "node", "guest"}):
            yield name, "guest" if name.startswith("vms/") else _guess(record)


def _guess(record: Record) -> str:
    """A node that no plan names: who decides or calls is a controller, the rest are hosts."""
    return "controller" if record.type in {"decision", "invoke"} else "host"


def _natural(name: str) -> list[tuple[int, int, str]]:
    """vcpus/10 comes behind vcpus/9."""
    return [
        (1, int(part), "") if part[:1].isdecimal() and part.isascii() else (0, 0, part)
        for part in re.split(r"([0-9]+)", name)
    ]
