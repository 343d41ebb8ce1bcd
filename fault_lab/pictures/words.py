"""Records in words: a sentence for each, times and masks as a reader likes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from fault_lab.pictures.recording import Record
from fpu_core.xfeature import format_mask

_MS: Final = 1_000_000
_ACTION: Final = re.compile(r"^(\w+)\((.*)\)$", re.DOTALL)
_ERRNOS: Final = {"1": "EPERM", "5": "EIO", "12": "ENOMEM", "14": "EFAULT", "28": "ENOSPC"}


def ms(ns: int) -> str:
    """Nanoseconds as milliseconds, to the microsecond, without floating point."""
    return f"{ns // _MS:,}.{ns % _MS // 1000:03d}"


def short(name: str) -> str:
    """A resource name without its collections: ``vms/a/vcpus/0`` is ``a/0``."""
    parts = name.split("/")
    return "/".join(parts[1::2]) if parts[0] == "vms" and len(parts) % 2 == 0 else name


def action_words(text: str) -> str:
    """What a fault did, from how its action prints: ``FailErrno(errno=12)`` is ENOMEM."""
    found = _ACTION.match(text)
    if found is None:
        return text
    kind, values = found[1], dict(re.findall(r"(\w+)=(-?\d+)", found[2]))
    if kind == "FailErrno":
        return _ERRNOS.get(values.get("errno", ""), f"errno {values.get('errno', '?')}")
    said = [
        f"{ms(int(value)).removesuffix('.000')} ms"
        for name, value in values.items()
        if name in {"for_ns", "min_ns", "restart_ns"} and value != "0"
    ]
    said += [f"{value}x" for name, value in values.items() if name in {"copies", "depth"}]
    return " ".join([kind.lower(), *said[:1]])


def sentence(record: Record) -> str:
    """What a record says, in one line; of a type that nobody knows, its fields."""
    known = _SENTENCES.get(record.type)
    if known is not None:
        return known(record).rstrip()
    return " ".join([record.type, *(f"{name}={value}" for name, value in record.fields.items())])


def _invoke(record: Record) -> str:
    return f"{short(record.text('process'))} calls {record.text('f')}({record.text('value')})"


def _end(record: Record) -> str:
    came_to = {"ok": "ok", "fail": "refused", "info": "nobody knows"}[record.type]
    return f"{record.text('f')} of {short(record.text('process'))}: {came_to} {record.text('value')}"


def _message(record: Record) -> str:
    source, _, to = record.text("link").partition("->")
    lost = record.text("lost")
    how = f"lost: {lost}" if lost else f"{ms(record.t - record.number('sent'))} ms on its way"
    return f"{record.text('what')} {short(source)} -> {short(to)}, {how}"


def _fault(record: Record) -> str:
    where = f"{record.text('point')} of {short(record.text('entity'))}, hit {record.text('hit')}"
    return f"fault {record.text('fault')} at {where}: {action_words(record.text('action'))}"


def _vcpu(record: Record) -> str:
    masks = f"XFD={format_mask(record.number('xfd'))} XCR0={record.number('xcr0'):#x}"
    return f"{short(record.text('vcpu'))} is {record.text('state')}, fpstate {record.number('bytes'):,} B, {masks}"


def _exit(record: Record) -> str:
    decided = f", {record.text('decision')} by {record.text('by') or 'the deadline'}" if record.text("decision") else ""
    said = f"exit {short(record.text('exit'))} generation {record.text('generation')} {record.text('state')}"
    return f"{said} ({record.text('exit_cause')}){decided}"


def _decision(record: Record) -> str:
    exit_ = f"{short(record.text('exit'))} generation {record.text('generation')}"
    return f"{record.text('node')} decides {record.text('kind')} for exit {exit_}"


def _node(record: Record) -> str:
    until = f" until {ms(record.number('until'))} ms" if record.number("until") else ""
    records = f", {record.text('records')} records" if record.text("records") else ""
    return f"{short(record.text('node'))} {record.text('state')}{until}{records}"


def _guest(record: Record) -> str:
    return f"guest {short(record.text('vcpu') or record.text('node'))} {record.text('state')} {record.text('why')}"


_SENTENCES: Final[dict[str, Callable[[Record], str]]] = {
    "phase": lambda record: f"phase {record.text('phase')}",
    "invoke": _invoke,
    "ok": _end,
    "fail": _end,
    "info": _end,
    "message": _message,
    "fault": _fault,
    "vcpu": _vcpu,
    "exit": _exit,
    "decision": _decision,
    "node": _node,
    "guest": _guest,
    "link": lambda record: f"link {record.text('link')} {record.text('state')} ({record.text('fault')})",
    "task": lambda record: f"{record.text('act')} of {record.text('of')}: {record.text('result')}",
    "violation": lambda record: f"violation of {record.text('check')}: {record.text('text')}",
}
