"""Reading a script. One step a line; `#` begins a comment.

| step | what it does |
|---|---|
| `xsetbv INDEX VALUE [cpl=N]` | XSETBV |
| `wrmsr MSR VALUE` | WRMSR; MSR is `XFD`, `XFD_ERR` or a number |
| `rdmsr MSR [= VALUE]` | RDMSR; with `=` what must be read |
| `write FEATURE OFFSET BYTES` | register bytes are loaded |
| `read FEATURE OFFSET LENGTH [= BYTES]` | register bytes are read |
| `tile ldtilecfg TILESxROWSxBYTES` | LDTILECFG |
| `tile tileloadd N pattern=SEED` | TILELOADD |
| `tile tilestored N`, `verify tile N` | TILESTORED; the bytes must be those loaded |
| `tile sttilecfg` | STTILECFG; the bytes must be those loaded |
| `tile tilezero N`, `tile tilerelease` | these |
| `nm [ts]`, `xfd_sync VALUE`, `init`, `hlt` | these; `hlt` ends the script |
| `enter [TASK]`, `leave`, `preempt [CPU]` | for run mode EXPLICIT |
| `say MARK [VALUE]` | the guest says something: `BOOTED`, `REFUSED`, ...; VALUE `read` is what RDMSR read last |
| `expect WHAT` | of the instruction before: `gp`, `nm`, `ud`, `done`, or `grew` |
| `goto LABEL`, `LABEL:` | go on there |

`... else LABEL` behind an instruction: where to go on if it takes #GP. `on nm:` (or `gp`, `ud`) begins a handler, the
indented lines below it or, on the same line, steps with commas between; its last word is `retry` (as IRET does; nothing
means the same), `skip` (go on behind the instruction), `goto` or `hlt`.

Values of registers and masks are hexadecimal, with or without 0x; everything else is decimal. BYTES is hexadecimal, or
`pattern=SEED:LENGTH` or `zero:LENGTH`; behind `=` the length may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from guest_agent.script_step import Expected, read_action
from guest_agent.script_syntax import EXPECTATIONS, Goto, Instruction, Retry, Script, Skip, Step

_LABEL = re.compile(r"[a-z][a-z0-9_]*")


class ScriptError(Exception):
    """A script that can not be read: the text says in which file and line, and what was expected there."""


def load_script(path: Path) -> Script:
    """Read a script from a file.

    Raises:
        ScriptError: it can not be read; names file and line.
        OSError: the file can not.
    """
    return parse_script(path.read_text(encoding="utf-8"), name=path.name)


def parse_script(text: str, *, name: str) -> Script:
    """Read a script; `name` is for messages.

    Raises:
        ScriptError: a line is wrong; names it.
    """
    reader = _Reader()
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].rstrip()
        if content:
            try:
                reader.read(number, content)
            except Expected as error:
                raise ScriptError(f"{name}:{number}: {error}") from None
    script = Script(name, tuple(reader.steps), reader.labels, {v: tuple(steps) for v, steps in reader.handlers.items()})
    _check_labels(script)
    return script


def _check_labels(script: Script) -> None:
    for step in (*script.steps, *(step for steps in script.handlers.values() for step in steps)):
        wanted = step.action.label if isinstance(step.action, Goto) else step.otherwise
        if wanted and wanted not in script.labels:
            raise ScriptError(f"{script.name}:{step.line}: expected a label of this script, got {wanted!r}")


class _Reader:
    """Collects steps, labels and handlers line by line."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.labels: dict[str, int] = {}
        self.handlers: dict[int, list[Step]] = {}
        self._handler: list[Step] | None = None  # whose indented lines these are

    def read(self, number: int, content: str) -> None:
        """Read one line without its comment."""
        indented = content[0].isspace()
        words = content.strip()
        if not indented:
            self._handler = None
        if words.startswith("on "):
            self._begin_handler(number, words)
        elif words.endswith(":"):
            self._label(words[:-1])
        elif indented and self._handler is not None:
            _append(self._handler, number, words, in_handler=True)
        elif indented:
            raise Expected("an indented line only below `on nm:` or the like", words)
        else:
            _append(self.steps, number, words, in_handler=False)

    def _label(self, label: str) -> None:
        if not _LABEL.fullmatch(label):
            raise Expected("a label of lower-case letters, digits and _", label)
        if label in self.labels:
            raise Expected("each label once", label)
        self.labels[label] = len(self.steps)

    def _begin_handler(self, number: int, words: str) -> None:
        head, colon, rest = words.partition(":")
        vector = EXPECTATIONS.get(head.removeprefix("on ").strip())
        if not colon or vector is None:
            raise Expected("`on nm:`, `on gp:` or `on ud:`", words)
        if vector in self.handlers:
            raise Expected("one handler for each exception", words)
        self._handler = self.handlers[vector] = []
        for part in filter(None, (part.strip() for part in rest.split(","))):
            _append(self._handler, number, part, in_handler=True)


def _append(steps: list[Step], number: int, words: str, *, in_handler: bool) -> None:
    """Read a step and put it behind those there are; `expect` belongs to the one before it."""
    verb, *operands = words.split()
    if verb == "expect":
        _expect(steps, operands)
        return
    text, _, label = words.partition(" else ")
    verb, *operands = text.split()
    action = read_action(verb, operands)
    if isinstance(action, Retry | Skip) and not in_handler:
        raise Expected("`retry` and `skip` in a handler only", words)
    if label and not isinstance(action, Instruction):
        raise Expected("`else` behind an instruction only", words)
    steps.append(Step(number, words, action, otherwise=label.strip()))


def _expect(steps: list[Step], operands: Sequence[str]) -> None:
    what = " ".join(operands)
    if what not in EXPECTATIONS:
        raise Expected(f"one of {', '.join(EXPECTATIONS)}", what)
    if not steps or not isinstance(steps[-1].action, Instruction):
        raise Expected("`expect` below the instruction it is about", "")
    steps[-1] = replace(steps[-1], expect=what)
