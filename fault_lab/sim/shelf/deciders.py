"""Who decides, and on what ground: controllers as they see exits, and hosts as they let them decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fault_lab.sim.shelf.book import Book, Fail
from host_agent import commands as c
from host_agent.control import holder
from vmm_controller.desk import Key, key_of
from vmm_controller.policy import DecisionKind, ExitHistory, ExitState, ExitView, Policy, seeded_draw
from vmm_controller.policy.rules import Case

if TYPE_CHECKING:
    from fault_lab.sim.controller import ControllerNode
    from fault_lab.sim.host import HostNode

_RETRIES: Final = frozenset(
    {DecisionKind.RETRY, DecisionKind.RETRY_AFTER, DecisionKind.RAISE_LIMIT, DecisionKind.RECLAIM}
)
#: A controller's process, and an exit.
_Seat = tuple[str, int, Key]


class DeciderBook(Book):
    """``decides-on-newest``, ``decides-once``, ``decides-on-all``, ``retries-end``, ``decider-in-charge``."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(fail)
        #: The newest view of each exit that a controller's process was shown.
        self._newest: dict[_Seat, ExitView] = {}
        #: What it has decided about, with the epoch of its control and the generation.
        self._decided: set[tuple[_Seat, int, int]] = set()
        #: Exits that it has left to another controller.
        self._yielded: set[_Seat] = set()
        self._was_open = False

    # -- controllers ---------------------------------------------------------------------------------------------------

    def sees(self, controller: ControllerNode, view: ExitView) -> None:
        """A controller is shown an exit."""
        seat = _seat(controller, key_of(view))
        known = self._newest.get(seat)
        if known is None or view.update_revision > known.update_revision:
            self._newest[seat] = view

    def decides(self, controller: ControllerNode, view: ExitView, epoch: int) -> None:
        """A controller makes up its mind about an exit, under a control of this epoch."""
        seat = _seat(controller, key_of(view))
        newest = self._newest[seat].generation
        if view.generation < newest:
            text = f"{controller.name} decides about generation {view.generation} of {view.name}, and has seen {newest}"
            self._fail("decides-on-newest", text)
        once = seat, epoch, view.generation
        if once in self._decided:
            text = f"{controller.name} decides about generation {view.generation} of {view.name} again"
            self._fail("decides-once", text)
        self._decided.add(once)
        self._yielded.discard(seat)

    def tries(self, controller: ControllerNode, view: ExitView, kind: DecisionKind, policy: Policy) -> None:
        """A controller has decided by a policy."""
        case = Case(exit=view, attempt=view.attempt, history=ExitHistory(), draw=seeded_draw(0))
        if kind in _RETRIES and view.attempt > policy.spent(case):
            text = f"{controller.name} decides {kind.name} at attempt {view.attempt}"
            self._fail("retries-end", f"{view.name}: {text}, and its policy has {policy.spent(case)} tries")

    def yields(self, controller: ControllerNode, view: ExitView, epoch: int) -> None:
        """Another controller has the VM: once that has gone, the decision is made anew."""
        seat = _seat(controller, key_of(view))
        self._decided.discard((seat, epoch, view.generation))
        self._yielded.add(seat)

    def forgets(self, controller: ControllerNode, view: ExitView) -> None:
        """The host knows nothing of the exit."""
        self._newest.pop(_seat(controller, key_of(view)), None)

    def idle(self, controller: ControllerNode, key: Key, epoch: int) -> None:
        """A controller has nothing to do about an exit."""
        seat = _seat(controller, key)
        view = self._newest.get(seat)
        if view is None or view.state is not ExitState.OPEN or seat in self._yielded:
            return
        if (seat, epoch, view.generation) not in self._decided:
            text = f"{controller.name} was shown generation {view.generation} of {view.name}, and does not decide"
            self._fail("decides-on-all", text)

    # -- hosts ---------------------------------------------------------------------------------------------------------

    def before(self, host: HostNode, command: c.Command) -> None:
        """Whether a decision is about an exit that waits for one."""
        state = host.machine.state
        self._was_open = (
            isinstance(command, c.ResolveExit)
            and command.exit in state.exits
            and command.request_id not in state.requests
        )

    def after(self, host: HostNode, command: c.Command, result: object, effects: list[Any]) -> None:  # noqa: ARG002
        """A decision that was taken is the holder's."""
        if not isinstance(command, c.ResolveExit) or isinstance(result, Exception) or not self._was_open:
            return
        vm = command.exit.partition("/vcpus/")[0]
        own = holder(host.machine.state, vm)
        if own is not None and own.name != command.control:
            text = f"{command.exit}: decided under {command.control}, and {own.name} has {vm}"
            self._fail("decider-in-charge", text)


def _seat(controller: ControllerNode, key: Key) -> _Seat:
    return controller.name, controller.life, key
