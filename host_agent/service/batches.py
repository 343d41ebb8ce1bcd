"""Submitting batches, with and without waiting for what comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fpstate.v1 import event_pb2

from host_agent.commands import SubmitBatch
from host_agent.events import GuestEvent, Outcome, PendingOutcome
from host_agent.service.agent import HostAgent
from host_agent.service.credits import session_credits
from host_agent.service.errors import Failure
from host_agent.service.translate.batch import Batch, rejected
from host_agent.sessions import Resume, resume
from host_agent.state import HostState, SessionRecord

Then = Callable[[list[Outcome]], None]


def submit_batch(agent: HostAgent, session: str, epoch: int, batch: Batch, then: Then | None = None) -> list[Outcome]:
    """Apply a batch and return its outcomes in its order: some may be pending or blocked. Consumes ``batch``.

    ``then`` gets them before anything that the same batch made known otherwise.
    """
    credits_left = _credits_left(agent.state, session, len(batch.events))
    granted = session_credits(len(agent.state.sessions))
    refused = [_no_credit(session, event, granted) for event in batch.events[credits_left:]]
    outcomes: list[Outcome] = []

    def settle(replies: Sequence[Outcome]) -> None:
        outcomes.extend(batch.settle([*replies, *refused]))
        if then is not None:
            then(outcomes)

    taken = tuple(batch.events[:credits_left])
    agent.submit(SubmitBatch(session=session, epoch=epoch, events=taken, received=batch.received), settle)
    return outcomes


def _credits_left(state: HostState, session: str, wanted: int) -> int:
    """How many of the events the session may still have under way. A vCPU has at most one event that is not final."""
    record = state.sessions.get(session)
    if record is None or wanted + len(record.vcpus) <= session_credits(len(state.sessions)):
        return wanted
    pending = sum(each.vcpu in record.vcpus for each in state.exits.values())
    return max(1, session_credits(len(state.sessions)) - pending)


def _no_credit(session: str, event: GuestEvent, granted: int) -> Outcome:
    text = f"{session!r} has {granted} events under way already"
    failure = Failure.because("CREDITS_EXCEEDED", text, session=session, credits=granted)
    return rejected(event.vcpu, event.seq, failure)


async def submit_until_final(agent: HostAgent, session: str, epoch: int, batch: Batch) -> list[Outcome]:
    """Apply a batch and wait until each of its events has its final outcome, or is blocked by an earlier call's.

    What is blocked behind a pending event of the batch is applied again once that is final. When the call is given up
    meanwhile, what the machine has taken stays taken.
    """
    waits: dict[tuple[str, int], asyncio.Future[Outcome]] = {}

    def expect(outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome.kind, PendingOutcome):
                waits[outcome.vcpu, outcome.seq] = agent.outcomes.wait(session, outcome.vcpu, outcome.seq)

    outcomes = submit_batch(agent, session, epoch, batch, expect)
    try:
        while waits:
            finals = dict(zip(waits, await asyncio.gather(*waits.values()), strict=True))
            waits.clear()
            outcomes = [finals.get((outcome.vcpu, outcome.seq), outcome) for outcome in outcomes]
            blocked = batch.only_blocked(outcomes)
            if blocked.events:
                outcomes = submit_batch(agent, session, epoch, blocked, expect)
    finally:
        for wait in waits.values():
            wait.cancel()
    return outcomes


def resume_of(state: HostState, session: SessionRecord, vcpu: str) -> Resume:
    """Where a vCPU of ``session`` goes on."""
    return resume(state, vcpu, session.vcpus[vcpu])


def seq_marks(state: HostState, session: str, outcomes: Sequence[Outcome]) -> list[event_pb2.SeqMark]:
    """Up to where these outcomes' vCPUs have come. The message that says so leaves when that is durable."""
    record = state.sessions.get(session)
    if record is None:
        return []
    names = [name for name in dict.fromkeys(outcome.vcpu for outcome in outcomes) if name in record.vcpus]
    return [event_pb2.SeqMark(vcpu=name, seq=resume_of(state, record, name).next_seq - 1) for name in names]
