"""Bugs of what is durable: what leaves too early, what is lost, what comes back in another order."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Patch
from tests.planted.bug import Bug

BUGS: Final = (
    Bug(
        id="answer-before-commit",
        title="Answers do not wait for the journal",
        checks=frozenset({"ack-after-commit"}),
        plan="restarts",
        patches=(
            Patch("fault_lab.sim.journal", "        if self.applied == self.durable:\n", "        if self.applied:\n"),
        ),
    ),
    Bug(
        id="watch-before-commit",
        title="A watch tells of exits that are not durable yet",
        checks=frozenset({"ack-after-commit"}),
        plan="restarts",
        patches=(Patch("fault_lab.sim.host", "        self.when_durable(leave, None)\n", "        leave()\n"),),
    ),
    Bug(
        id="journal-forgets",
        title="The last records that were durable are gone after a crash",
        checks=frozenset({"acknowledged-is-there", "recovered-same-digest", "session-goes-on"}),
        plan="restarts",
        patches=(
            Patch(
                "fault_lab.sim.journal",
                "        if ephemeral:\n            self.records.clear()\n",
                "        del self.records[-5:]\n        if ephemeral:\n            self.records.clear()\n",
            ),
        ),
    ),
    Bug(
        id="park-not-durable",
        title="A command that opens an exit is not written down",
        checks=frozenset({"acknowledged-is-there", "recovered-same-digest", "recovered-same-outcomes", "decides-once"}),
        plan="restarts",
        patches=(
            Patch(
                "fault_lab.sim.host",
                "        self.journal.append(Logged(now_ns, command, machine.state.revision, outcome))\n",
                "        if not any(isinstance(each, ExitChanged) for each in effects):\n"
                "            self.journal.append(Logged(now_ns, command, machine.state.revision, outcome))\n",
            ),
        ),
    ),
    Bug(
        id="group-in-another-order",
        title="The records of a group come back in another order than they were carried out in",
        checks=frozenset({"recovered-same-outcomes", "recovered-same-digest"}),
        plan="restarts",
        patches=(
            Patch(
                "fault_lab.sim.journal",
                "        self.records += self._writing\n        self._writing = []\n",
                "        self.records += reversed(self._writing)\n        self._writing = []\n",
            ),
        ),
    ),
    Bug(
        id="full-disk-unnoticed",
        title="A disk that is full loses what was applied, and the host goes on as if it had been written",
        checks=frozenset(
            {
                "ack-after-commit",
                "acknowledged-is-there",
                "recovered-same-digest",
                "recovered-same-outcomes",
                "guests-end",
                "no-stuck-exit",
            }
        ),
        plan="restarts",
        patches=(
            Patch(
                "fault_lab.sim.journal",
                '        self._host.recover("disk full")\n',
                "",
            ),
        ),
    ),
)
