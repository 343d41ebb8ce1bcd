"""Calls, from where they were made to where their end was heard, or to the end of the process that made them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from fault_lab.pictures.recording import Record

#: What a call came to.
ENDS: Final = frozenset({"ok", "fail", "info"})
#: States of a node in which its process is not there any more.
DOWN: Final = frozenset({"killed", "ended", "fenced", "refused", "journal failed"})


def calls(records: Sequence[Record]) -> Iterator[tuple[Record, Record | None]]:
    """Yield each ``invoke`` and the record that ends it: its outcome, or the end of its process; None for neither."""
    under_way: dict[int, Record] = {}
    for record in records:
        number = record.number("call")
        if record.type == "invoke":
            under_way[number] = record
        elif record.type in ENDS and number in under_way:
            yield under_way.pop(number), record
        elif record.type == "node" and record.text("state") in DOWN:
            ended = record.text("node")
            for call in [call for call, begin in under_way.items() if _is_of(begin.text("process"), ended)]:
                yield under_way.pop(call), record
    for begin in under_way.values():
        yield begin, None


def _is_of(process: str, node: str) -> bool:
    """Whether a process is that node, or a vCPU of that guest."""
    return process == node or process.startswith(f"{node}/vcpus/")
