"""``fpstated host --record``: every command of a history as a line, from its beginning.

The log is replayed from an empty host, so it can only be of a host that begins; the journal of one that goes on has all
of it, and `fpstated journal dump` and `replay` read that.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from host_agent.commands import Command
from host_agent.effects import Effect
from host_agent.journal.durable import DurableJournal
from host_agent.journal.errors import JournalError
from host_agent.log import config_line, record_line, rolled_back_line
from host_agent.service.agent import HostAgent


class CommandLog:
    """A listener of an agent that writes what it hears to a new file, line by line."""

    def __init__(self, path: Path, agent: HostAgent) -> None:
        """Begin the file. Raises ``JournalError`` for a host with a past, ``OSError`` where there is such a file."""
        self._agent = agent
        journal = agent.journal
        if isinstance(journal, DurableJournal) and journal.durable:
            raise JournalError(
                f"--record is for a host that begins, and the state directory has {journal.durable} records already: "
                "see fpstated journal dump and replay, or give --ephemeral"
            )
        self._out = path.open("x", encoding="utf-8")
        self._write(config_line(agent.state.config))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._out.close()

    def heard(self, command: Command, effects: list[Effect]) -> None:  # noqa: ARG002 -- the command is what led to them
        """A line per command, refused ones included: they move time."""
        self._write(record_line(self._agent.state.now_ns, command))

    def rolled_back(self) -> None:
        """Say how many of the commands have happened: the journal's records are the same ones."""
        journal = self._agent.journal
        assert isinstance(journal, DurableJournal), "nothing else goes back"
        self._write(rolled_back_line(journal.durable))

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()
