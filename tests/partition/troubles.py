"""What happens in a round: somebody is cut off or stopped, for longer than the leases or not, and comes back.

Each trouble proves three things while it lasts: that it has happened (who is cut off gets nothing any more), nobody
else is harmed (all others go on), and, once it is over, that whoever was in it goes on, or knows that it was replaced.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from guest_agent.event import RegisterRead
from guest_agent.outcome import Done
from guest_agent.session import open_session
from tests.partition.process import LIMIT_S, LineProcess
from tests.partition.world import CONTROLLERS, COUNTING, EXITING, LEASE_S, World

_LONG_S: Final = LEASE_S * 2
_SHORT_S: Final = LEASE_S / 4


@dataclass
class Verdict:
    """What a run found out. ``wrong`` says what was not as it has to be."""

    lost: int = 0
    harmed: int = 0
    fenced: int = 0
    wrong: list[str] = field(default_factory=list)

    def harm(self, what: str) -> None:
        """Somebody did not go on."""
        self.harmed += 1
        self.wrong.append(what)

    def lose(self, what: str) -> None:
        """Something that was acknowledged is not there."""
        self.lost += 1
        self.wrong.append(what)


class Troubles:
    """The kinds of trouble, on a world."""

    def __init__(self, world: World, verdict: Verdict, rng: Random) -> None:
        self._world = world
        self._verdict = verdict
        self._rng = rng

    def kinds(self) -> dict[str, Callable[[], None]]:
        """Each by its name."""
        return {
            "guest cut off, both ways, longer than its lease": lambda: self._cut_guest(_LONG_S, both=True),
            "guest cut off, both ways, for a moment": lambda: self._cut_guest(_SHORT_S, both=True),
            "guest cut off, towards the host": lambda: self._cut_guest(_LONG_S, to_host=True),
            "guest cut off, from the host": lambda: self._cut_guest(_LONG_S, to_node=True),
            "guest stopped, longer than its lease": self._stop_guest,
            "guest cut off and replaced within its lease": lambda: self._replace_guest(_SHORT_S),
            "guest cut off and replaced after its lease": lambda: self._replace_guest(_LONG_S),
            "controller cut off, both ways": lambda: self._cut_controller(to_host=True, to_node=True),
            "controller cut off, towards the host": lambda: self._cut_controller(to_host=True, to_node=False),
            "controller cut off, from the host": lambda: self._cut_controller(to_host=False, to_node=True),
            "controller stopped, longer than its lease": self._stop_controller,
            "host stopped, longer than all leases": self._stop_host,
        }

    # -- guests --------------------------------------------------------------------------------------------------------

    def _cut_guest(self, for_s: float, *, both: bool = False, to_host: bool = False, to_node: bool = False) -> None:
        guest = self._world.processes[self._rng.choice(COUNTING)]
        self._world.network.cut(guest.name, to_host=to_host or both, to_node=to_node or both)
        try:
            self._silent(guest, for_s)
            self._others_go_on(guest)
        finally:
            self._world.network.heal(guest.name)
        self._goes_on(guest)

    def _stop_guest(self) -> None:
        guest = self._world.processes[self._rng.choice(COUNTING)]
        guest.pause()
        try:
            self._silent(guest, _LONG_S)
            self._others_go_on(guest)
        finally:
            guest.resume()
        self._goes_on(guest)

    def _replace_guest(self, after_s: float) -> None:
        """Another agent takes the vCPU over meanwhile; it finds what was acknowledged, and the first one is fenced."""
        guest = self._world.processes[self._rng.choice(COUNTING)]
        self._world.network.cut(guest.name, to_host=True, to_node=True)
        vcpu = f"vms/{guest.name}/vcpus/0"
        try:
            self._silent(guest, after_s)
            with (
                self._world.operator() as client,
                open_session(client.channel, vcpus=[vcpu], client_name="another", lease_s=LIMIT_S) as session,
            ):
                outcome = session.vcpu(vcpu).submit(RegisterRead(2, 0, 8))
                found = int.from_bytes(outcome.data, "little") if isinstance(outcome, Done) else -1
                self._others_go_on(guest)
                self._world.network.heal(guest.name)
                self._is_fenced(guest)
        finally:
            self._world.network.heal(guest.name)
        if not guest.acked <= found <= guest.acked + 1:
            self._verdict.lose(f"{guest.name} was acknowledged {guest.acked}, its vCPU has {found}")
        again = self._world.start(guest.name)
        if not again.until(lambda: again.started is not None or not again.alive) or again.started != found:
            self._verdict.lose(f"{guest.name} begins anew with {again.started}, its vCPU had {found}: {again.lost}")
        self._goes_on(again)

    def _is_fenced(self, guest: LineProcess) -> None:
        guest.until(lambda: not guest.alive)
        status = guest.ended()
        if status == 3 and guest.fenced:
            self._verdict.fenced += 1
        else:
            self._verdict.wrong.append(f"{guest.name} was replaced and ended with {status}: {guest.lost}")

    # -- controllers ---------------------------------------------------------------------------------------------------

    def _decider(self) -> LineProcess:
        """The controller that has decided last."""
        exiting = self._world.processes[EXITING]
        decided = len(exiting.exits) - 2  # the newest may be undecided
        with self._world.operator() as client:
            named = {each.name: each.decided_by for each in client.list_exits(f"vms/{EXITING}")}
        return self._world.processes[named.get(exiting.exits[max(0, decided)]) or CONTROLLERS[0]]

    def _cut_controller(self, *, to_host: bool, to_node: bool) -> None:
        controller = self._decider()
        before = controller.fenced
        self._world.network.cut(controller.name, to_host=to_host, to_node=to_node)
        try:
            time.sleep(_LONG_S)  # how long it lasts, and nothing is concluded from it
            self._others_go_on(controller)
        finally:
            self._world.network.heal(controller.name)
        self._was_replaced(controller, before)

    def _stop_controller(self) -> None:
        controller = self._decider()
        before = controller.fenced
        controller.pause()
        try:
            time.sleep(_LONG_S)
            self._others_go_on(controller)
        finally:
            controller.resume()
        self._was_replaced(controller, before)

    def _was_replaced(self, controller: LineProcess, before: int) -> None:
        """The other one has taken over; what this one still wants to say at its old epoch is refused, and it waits."""
        if controller.until(lambda: controller.fenced > before or not controller.alive) and controller.alive:
            self._verdict.fenced += 1
        else:
            self._verdict.wrong.append(f"{controller.name} was replaced and was not fenced: {controller.last_words}")
        self._goes_on(self._world.processes[EXITING])
        for each in (self._world.processes[node] for node in CONTROLLERS):
            if not each.alive:
                self._verdict.wrong.append(f"{each.name} has ended: {each.last_words}")

    # -- the host ------------------------------------------------------------------------------------------------------

    def _stop_host(self) -> None:
        self._world.pause_host(signal.SIGSTOP)
        try:
            for guest in self._world.guests():
                self._silent(guest, _LONG_S / 3)
        finally:
            self._world.pause_host(signal.SIGCONT)
        for guest in self._world.guests():
            self._goes_on(guest)

    # -- what has to hold ----------------------------------------------------------------------------------------------

    def _silent(self, guest: LineProcess, for_s: float) -> None:
        """Let a trouble last until the guest has heard nothing of its host for so long: it has happened."""
        began = heard_at = time.monotonic()
        before = guest.acked
        while time.monotonic() < heard_at + for_s:
            time.sleep(0.05)
            if guest.acked != before:
                before, heard_at = guest.acked, time.monotonic()
            if heard_at > began + LIMIT_S:
                self._verdict.wrong.append(f"{guest.name} is still acknowledged what it sends")
                return

    def _others_go_on(self, apart_from: LineProcess) -> None:
        for guest in self._world.guests():
            if guest is not apart_from and not guest.advances():
                self._verdict.harm(
                    f"{guest.name} does not go on while {apart_from.name} is away: {guest.lost} {guest.last_words}"
                )

    def _goes_on(self, guest: LineProcess) -> None:
        if not guest.advances():
            self._verdict.harm(f"{guest.name} does not go on: {guest.lost} {guest.last_words}")
