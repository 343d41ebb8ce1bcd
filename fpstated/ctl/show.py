"""What a command prints: a table on a terminal, the same columns whole and plain in a pipe, or protobuf's JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print the host's answer as protobuf's JSON: fields that stay.")]

#: Words that are worth a colour, where there are colours.
_COLOURS: Final = {
    "OPEN": "bold red",
    "APPLYING": "yellow",
    "PAUSED": "yellow",
    "PARKED": "bold red",
    "BEGUN": "yellow",
    "IMPORTED": "yellow",
    "STAGED": "yellow",
    "KILLED": "red",
    "BROKEN": "bold red",
    "DRAINING": "yellow",
    "CREATED": "green",
    "DELETED": "red",
}
#: Wider than any line: nothing is folded or cut where no terminal is.
_ENDLESS: Final = 100_000


class _Output(Console):
    """A console that leaves it to the command what to do about a reader who has seen enough."""

    def on_broken_pipe(self) -> None:
        """Called where BrokenPipeError is handled."""
        raise  # noqa: PLE0704


def console() -> Console:
    """Standard output as it is now; without colours where NO_COLOR or no terminal says so."""
    if sys.stdout.isatty():
        return _Output(highlight=False)
    return _Output(highlight=False, width=_ENDLESS, color_system=None, force_terminal=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns; a column whose name ends with `>` is to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.rstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    _print(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print one thing: a name and a value a line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False, show_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, cell(value))
    _print(table)


def _print(table: Table) -> None:
    """Without the blanks behind the last column."""
    out = console()
    with out.capture() as captured:
        out.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


def cell(value: object) -> Text:
    """A value as a text; absent ones are a dash."""
    text = "-" if value is None or value == "" else str(value)
    return Text(text, style=_COLOURS.get(text, ""))


def print_json(message: Message) -> None:
    """Print a message as one JSON object: fields in lowerCamelCase, empty ones included, 64 bits as text."""
    print(json.dumps(as_json(message), indent=2 if sys.stdout.isatty() else None))


def as_json(message: Message) -> dict[str, Any]:
    """The message as protobuf's JSON has it."""
    made: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    return made


def word(enum: Any, value: int) -> str:  # noqa: ANN401 -- any generated enum
    """The name of an enum's value without what all of its names begin with; nothing for the unspecified one."""
    name: str = enum.Name(value) if value in enum.values() else str(value)
    first: str = enum.Name(0).removesuffix("UNSPECIFIED")
    return name.removeprefix(first) if value else ""


def size(value: int | None) -> str:
    """Bytes for people."""
    return "none" if value is None else f"{value:,} B"


def mask(value: int) -> str:
    """A mask of xfeatures."""
    return f"{value:#x}"


def seconds(duration: Any) -> str:  # noqa: ANN401 -- a google.protobuf.Duration
    """A duration for people."""
    return f"{duration.seconds + duration.nanos / 1e9:g} s"
