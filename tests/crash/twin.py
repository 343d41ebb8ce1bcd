"""The twin: what the journal says, carried out again from record 0 on, beside the host.

It never sees a snapshot. Each time the host is dead the twin takes the records that have come since, compares every
outcome, and then is what the host must be when it comes back: the digests are compared.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from host_agent.commands import Boot, Command, ResolveExit
from host_agent.exits import ExitRecord
from host_agent.journal.errors import DamagedError
from host_agent.journal.recovery import carry_out, check_tail, read_chain, read_command
from host_agent.journal.store import Store
from host_agent.machine import HostMachine
from host_agent.state import HostConfig


class Twin:
    """A machine and the place where it stands in the journal."""

    def __init__(self) -> None:
        self.machine = HostMachine(HostConfig())
        self.n = 0
        self.crc = 0
        #: The generations of each exit that somebody has decided about.
        self.decided: dict[str, set[int]] = defaultdict(set)

    def advance(self, directory: Path, *, through: int | None = None) -> None:
        """Take what has come since, of a host that is dead; or of one that lives, up to a record.

        Raises ``JournalError`` where it is not as it was.
        """
        with Store(directory, write=False) as store:
            if store.last() < self.n:
                raise DamagedError(store.last() + 1, f"records {store.last() + 1} to {self.n} were there, and are gone")
            for number, record in read_chain(store.bodies(self.n, through=through), self.n, self.crc):
                command = read_command(number, record)
                if self.n == 0 and isinstance(command, Boot):
                    self.machine = HostMachine(command.config)
                    self.machine.on_applied = self._note
                carry_out(self.machine, number, record, command)
                self.n, self.crc = number, record.crc
            if through is None:
                check_tail(store, self.n, self.crc)

    def follow(self, directory: Path) -> None:
        """Take what a host that lives has committed by now."""
        with Store(directory, write=False) as store:
            through = store.last()
        self.advance(directory, through=through)

    def _note(self, _now_ns: int, command: Command, reply: object) -> None:
        if isinstance(command, ResolveExit) and isinstance(reply, ExitRecord):
            self.decided[command.exit].add(command.generation)
