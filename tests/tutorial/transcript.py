"""The tutorial as what it is: files to save, commands to type, and what they show.

A block whose first line is a comment with a name, ``# late.yaml``, is a file. A block with ``$ `` lines is a session:
each command with what it says, errors first. In what is shown ``...`` stands for anything: alone on a line for any
lines, within a line for any text; it is there for times and for what real processes leave open. A picture is one that a
command has made, byte for byte.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TUTORIAL: Final = Path(__file__).parent.parent.parent / "docs" / "tutorial"
_BLOCK: Final = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE: Final = re.compile(r"# (\w+\.\w+)\n")
_PICTURE: Final = re.compile(r"!\[[^\]]*\]\((pictures/([\w.-]+))\)")
_ANY: Final = "..."
_COMMAND_S: Final = 300
#: What a command may know of where the tests run. Not whether somebody looks: pytest says more where CI is set.
_KNOWN: Final = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Shown:
    """A command of a chapter and what is shown below it."""

    command: str
    text: str

    def fits(self, said: str) -> bool:
        """Whether that is what the command says."""
        lines = [f"{re.escape(line).replace(re.escape(_ANY), '.*')}\n" for line in self.text.splitlines()]
        pattern = "".join("(?:.*\n)*" if line == ".*\n" else line for line in lines)
        return re.fullmatch(pattern, said) is not None


def chapters() -> list[Path]:
    """The chapters in their order."""
    return sorted(TUTORIAL.glob("[0-9][0-9]-*.md"))


def played(chapter: str, folder: Path) -> Iterator[tuple[Shown, str]]:
    """Save the files of a chapter and type its commands, in their order; yields each with what it says now."""
    for block in _BLOCK.findall(chapter):
        if found := _FILE.match(block):
            (folder / found[1]).write_text(block, encoding="utf-8")
        for shown in _session(block):
            yield shown, _typed(shown.command, folder)


def pictures(chapter: str) -> list[tuple[Path, str]]:
    """The pictures of a chapter: the file beside it, and the name that a command has given it."""
    return [(TUTORIAL / path, name) for path, name in _PICTURE.findall(chapter)]


def _session(block: str) -> Iterator[Shown]:
    if block.startswith("$ "):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, text = part.partition("\n")
            yield Shown(command, text)


def _typed(command: str, folder: Path) -> str:
    """What it says. The command ``fpstated`` and ``pytest`` are those of this Python."""
    environment = {name: os.environ[name] for name in _KNOWN if name in os.environ}
    environment |= {"COLUMNS": "120", "NO_COLOR": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_COMMAND_S,
        check=False,
    )
    return done.stdout
