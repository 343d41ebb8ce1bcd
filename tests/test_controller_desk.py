"""The desk: which exits wait for a decision of ours, and that each is decided once per generation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.test_controller_policy import an_exit
from vmm_controller.desk import ExitDesk, key_of
from vmm_controller.policy import ExitResult, ExitState, ExitView


def at(revision: int, state: ExitState = ExitState.OPEN, *, generation: int = 1, **changes: object) -> ExitView:
    """One exit as it was at a revision of the host."""
    view = replace(an_exit(), update_revision=revision, state=state, generation=generation)
    return replace(view, **changes)  # type: ignore[arg-type]


KEY = key_of(at(1))


def test_an_exit_is_wanted_once_per_generation() -> None:
    """What was decided is not decided again, until a decision leaves the exit open with the next generation."""
    desk = ExitDesk()
    desk.see(at(1))
    assert desk.wanted(KEY) == at(1)
    desk.decided(at(1))
    assert desk.wanted(KEY) is None
    desk.see(at(2, ExitState.APPLYING))
    assert desk.wanted(KEY) is None
    desk.see(at(3, generation=2))
    assert desk.wanted(KEY) == at(3, generation=2)


def test_old_news_changes_nothing() -> None:
    """A message that was overtaken by a newer one is not taken over, nor one that was seen before."""
    desk = ExitDesk()
    assert desk.see(at(5, generation=2))
    assert not desk.see(at(4))
    assert not desk.see(at(5, generation=2))
    assert desk.wanted(KEY) == at(5, generation=2)


@pytest.mark.parametrize("end", [ExitState.RESOLVED, ExitState.CANCELLED])
def test_an_exit_that_has_ended_does_not_come_back(end: ExitState) -> None:
    """A late message about an exit that was resolved or cancelled is not taken for a new exit."""
    desk = ExitDesk()
    desk.see(at(1))
    desk.see(at(3, end))
    assert len(desk) == 0
    assert not desk.see(at(2))
    assert desk.wanted(KEY) is None


def test_the_same_name_on_another_vcpu_is_another_exit() -> None:
    """A vCPU that was deleted and made again under its name has exits of its own."""
    desk = ExitDesk()
    desk.see(at(9, ExitState.RESOLVED))
    other = at(2, vcpu_uid="another")
    assert desk.see(other)
    assert desk.wanted(key_of(other)) == other


def test_what_somebody_paused_waits_for_somebody() -> None:
    """A paused exit is decided only where the controller was told so."""
    quiet, eager = ExitDesk(), ExitDesk(decide_paused=True)
    for desk in (quiet, eager):
        desk.see(at(2, ExitState.PAUSED, generation=2))
    assert quiet.wanted(KEY) is None
    assert eager.wanted(KEY) is not None


def test_a_list_is_the_truth() -> None:
    """An exit that a complete list does not have ended while nobody was looking."""
    desk = ExitDesk()
    desk.see(at(1))
    desk.keep_only([])
    assert len(desk) == 0


def test_another_controllers_exit_is_wanted_again_when_it_may_have_gone() -> None:
    """An exit that was left to the holder of its VM is looked at again after a while, and no other is."""
    desk = ExitDesk()
    other = at(1, vcpu_uid="another")
    for view in (at(1), other):
        desk.see(view)
        desk.decided(view)
    desk.yielded(at(1))
    assert desk.wanted(KEY) is None
    assert desk.reconsider_yielded() == [KEY]
    assert desk.wanted(KEY) is not None
    assert desk.wanted(key_of(other)) is None


def test_a_new_control_decides_what_the_old_one_could_not() -> None:
    """After the control was acquired again, every exit that is still open is wanted."""
    desk = ExitDesk()
    desk.see(at(1))
    desk.decided(at(1))
    desk.reconsider()
    assert desk.wanted(KEY) is not None


def test_deferrals_are_counted_in_a_row() -> None:
    """Two deferred exits of a vCPU count two; one with another end starts anew."""
    desk = ExitDesk()
    for seq, result in enumerate([ExitResult.DEFERRED, ExitResult.DEFERRED], start=1):
        desk.see(at(seq, ExitState.RESOLVED, name=f"vms/a/vcpus/0/exits/{seq}", result=result))
    assert desk.history(at(3)).deferrals == 2
    desk.see(at(4, ExitState.RESOLVED, name="vms/a/vcpus/0/exits/4", result=ExitResult.COMMITTED))
    assert desk.history(at(5)).deferrals == 0
