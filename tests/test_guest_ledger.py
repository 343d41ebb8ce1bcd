"""The numbers of a vCPU's events on the agent's side, and what is done about a call that failed."""

from __future__ import annotations

import pytest

from guest_agent.event import Hlt, Init, Rdmsr
from guest_agent.ledger import SeqLedger
from guest_agent.outcome import Blocked, Done, Pending, Refusal
from guest_agent.recovery import Patience, Remedy, remedy
from guest_agent.wait import SessionLost

VCPU = "vms/a/vcpus/0"


def test_numbers_rise_by_one_and_outcomes_are_received_in_any_order() -> None:
    """What the host may forget ends before the first event without a final outcome."""
    ledger = SeqLedger(VCPU, next_seq=7)
    assert (ledger.next_seq, ledger.received_through) == (7, 6)
    assert [ledger.take(Rdmsr(0x1C4)), ledger.take(Hlt())] == [7, 8]
    assert ledger.note(8, Done())
    assert ledger.received_through == 6
    assert ledger.note(7, Done())
    assert (ledger.received_through, ledger.next_seq, ledger.under_way) == (8, 9, ())


def test_an_outcome_is_news_once() -> None:
    """A repeated final outcome, or one of a number that was never taken, is passed over."""
    ledger = SeqLedger(VCPU)
    seq = ledger.take(Hlt())
    assert ledger.note(seq, Done())
    assert not ledger.note(seq, Done())
    assert not ledger.note(seq + 1, Done())


def test_a_pending_event_stays_until_its_final_outcome() -> None:
    """It is under way and parked, keeps its event for another sending, and nothing before it is forgotten."""
    ledger = SeqLedger(VCPU)
    seq = ledger.take(Hlt())
    assert not ledger.note(seq, Pending("exits/1", 2))
    assert (ledger.parked, ledger.pending(seq), ledger.event(seq)) == (True, Pending("exits/1", 2), Hlt())
    init = ledger.take(Init())
    assert ledger.note(init, Done())
    assert ledger.received_through == 0
    assert ledger.note(seq, Done())
    assert (ledger.parked, ledger.received_through) == (False, 2)


def test_a_blocked_event_gives_its_number_back() -> None:
    """What the host did not look at is not under way any more, nor is what came behind it."""
    ledger = SeqLedger(VCPU)
    for _ in range(3):
        ledger.take(Hlt())
    assert not ledger.note(2, Blocked(2, "exits/1"))
    ledger.untake(2)
    assert (ledger.under_way, ledger.next_seq) == ((1,), 2)


def test_a_new_session_goes_on_where_the_host_is() -> None:
    """Either behind the last event, or at one that the host has not got; anything else is another story."""
    ledger = SeqLedger(VCPU, next_seq=5)
    ledger.resume(5)
    ledger.take(Hlt())
    ledger.resume(5)
    ledger.resume(6)
    for elsewhere in (4, 7):
        with pytest.raises(SessionLost, match=f"goes on at event {elsewhere}, this agent at 6"):
            ledger.resume(elsewhere)


def test_an_event_of_an_earlier_agent_counts_as_under_way() -> None:
    """It has a number and no event, so it can be waited for but not sent again."""
    ledger = SeqLedger(VCPU, next_seq=4, pending_seq=3)
    assert (ledger.under_way, ledger.event(3), ledger.received_through) == ((3,), None, 2)


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (Refusal("UNAVAILABLE", "connection refused"), Remedy.LATER),
        (Refusal("CANCELLED", "the server stops"), Remedy.LATER),
        (Refusal("UNAVAILABLE", "draining", "HOST_DRAINING"), Remedy.LATER),
        (Refusal("RESOURCE_EXHAUSTED", "no room", "STORAGE_FULL"), Remedy.LATER),
        (Refusal("UNAVAILABLE", "stops", "STORAGE_FAILED"), Remedy.LATER),
        (Refusal("ABORTED", "busy", "VCPU_BUSY"), Remedy.LATER),
        (Refusal("DEADLINE_EXCEEDED", "too slow"), Remedy.AGAIN),
        (Refusal("DEADLINE_EXCEEDED", "too slow", "DEADLINE_REACHED"), Remedy.AGAIN),
        (Refusal("ABORTED", "expired", "SESSION_EXPIRED"), Remedy.REOPEN),
        (Refusal("NOT_FOUND", "no session", "SESSION_NOT_FOUND"), Remedy.REOPEN),
        (Refusal("ABORTED", "fenced", "SESSION_FENCED"), Remedy.NONE),
        (Refusal("NOT_FOUND", "no vCPU", "VCPU_NOT_FOUND"), Remedy.NONE),
        (Refusal("UNKNOWN", "who knows"), Remedy.NONE),
    ],
)
def test_only_what_may_go_away_is_tried_again(refusal: Refusal, expected: Remedy) -> None:
    """A lost connection waits, an ended lease opens anew, a fenced session and a mistake are told."""
    assert remedy(refusal) is expected


def test_pauses_double_and_come_to_an_end() -> None:
    """Each pause is at least half of its nominal length; the host's own wish counts; in the end there is none."""
    patience = Patience(total_s=60, first_s=0.1, longest_s=0.3)
    pauses = [patience.pause_s() or 0.0 for _ in range(4)]
    assert all(low <= pause <= high for pause, low, high in zip(
        pauses, (0.05, 0.1, 0.15, 0.15), (0.1, 0.2, 0.3, 0.3), strict=True
    ))  # fmt: skip
    assert patience.pause_s(at_least_s=5.0) == 5.0
    assert Patience(total_s=0).pause_s() is None
