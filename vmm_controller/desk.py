"""ExitDesk: which exits there are, and which of them still want a decision of ours. Plain bookkeeping, no calls.

At most one decision per (exit, generation): an exit is wanted once per generation, and is wanted again in the same one
only after `reconsider`, which is for a control that is new or that may have become ours to use.
"""

from __future__ import annotations

from typing import Final

from vmm_controller.policy import ExitHistory, ExitResult, ExitState, ExitView

#: (uid of the vCPU, exit name): a name may come back with another vCPU, a uid never does.
Key = tuple[str, str]

#: Ended exits that are remembered, so that a late message does not bring one back.
_ENDED_MAX: Final = 10_000


def key_of(view: ExitView) -> Key:
    """What an exit goes by here."""
    return view.vcpu_uid, view.name


class ExitDesk:
    """The newest view of each unresolved exit, and what was decided about it last."""

    def __init__(self, *, decide_paused: bool = False) -> None:
        self._states = frozenset({ExitState.OPEN, ExitState.PAUSED}) if decide_paused else frozenset({ExitState.OPEN})
        self._views: dict[Key, ExitView] = {}
        self._decided: dict[Key, int] = {}
        self._yielded: set[Key] = set()
        self._ended: dict[Key, int] = {}
        self._deferrals: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._views)

    def see(self, view: ExitView) -> bool:
        """Take a view over; False if it is not newer than what was known. An exit that has ended leaves the desk."""
        key = key_of(view)
        known = self._views.get(key)
        latest = known.update_revision if known else self._ended.get(key, -1)
        if view.update_revision <= latest:
            return False
        if view.settled:
            self._end(key, view)
        else:
            self._views[key] = view
        return True

    def _end(self, key: Key, view: ExitView) -> None:
        self.forget(key)
        self._ended[key] = view.update_revision
        if len(self._ended) > _ENDED_MAX:
            del self._ended[next(iter(self._ended))]
        if view.result is ExitResult.DEFERRED:
            self._deferrals[view.vcpu_uid] = self._deferrals.get(view.vcpu_uid, 0) + 1
        else:
            self._deferrals.pop(view.vcpu_uid, None)

    def forget(self, key: Key) -> None:
        """The exit is no more."""
        self._views.pop(key, None)
        self._decided.pop(key, None)
        self._yielded.discard(key)

    def keep_only(self, views: list[ExitView]) -> None:
        """A complete list is the truth: what is not in it has ended while nobody was looking."""
        listed = {key_of(view) for view in views}
        for key in [key for key in self._views if key not in listed]:
            self.forget(key)

    def wanted(self, key: Key) -> ExitView | None:
        """The exit as it is, if it waits for a decision that was not made yet."""
        view = self._views.get(key)
        if view is None or view.state not in self._states or not view.allowed_decisions:
            return None
        return view if view.generation > self._decided.get(key, 0) else None

    def decided(self, view: ExitView) -> None:
        """A decision was made about this generation, even if it is to leave the exit alone."""
        self._decided[key_of(view)] = view.generation

    def yielded(self, view: ExitView) -> None:
        """Another controller decides about the exit's VM, for as long as it is there."""
        self._yielded.add(key_of(view))

    def reconsider_yielded(self) -> list[Key]:
        """The other controller may have gone: these exits are wanted again."""
        keys = [key for key in self._yielded if key in self._views]
        self._yielded.clear()
        for key in keys:
            self._decided.pop(key, None)
        return keys

    def reconsider(self) -> None:
        """With a new control: every exit that still waits is wanted again, whatever became of an earlier decision."""
        self._decided.clear()
        self._yielded.clear()

    def history(self, view: ExitView) -> ExitHistory:
        """What the exit itself does not say."""
        return ExitHistory(deferrals=self._deferrals.get(view.vcpu_uid, 0))
