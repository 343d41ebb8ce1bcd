"""Policies as tables: an exit, attempt by attempt, and what is decided about it.

Each row of a table reads `attempt cause: decision`; nothing here needs a host.
"""

from __future__ import annotations

from typing import Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_controller.exit_proto import decision_to_proto
from vmm_controller.policy import (
    NO_HISTORY,
    POLICIES,
    Backoff,
    Decision,
    DecisionKind,
    ExitCause,
    ExitHistory,
    ExitState,
    ExitTrigger,
    ExitView,
    PolicyBook,
    RetryAfter,
    decide,
    parse_policies,
    parse_policy,
    seeded_draw,
)

D = DecisionKind
_ANY: Final = frozenset({D.INJECT_GP, D.PAUSE, D.KILL_VCPU, D.KILL_VM, D.RESET_VM})
_MEMORY: Final = _ANY | {D.RETRY, D.RETRY_AFTER}

#: What an exit of each cause allows. Source: exit.proto, the messages of the decisions.
ALLOWED: Final = {
    ExitCause.NO_MEMORY: _MEMORY,
    ExitCause.QUOTA: _MEMORY | {D.RAISE_LIMIT},
    ExitCause.NO_PERMISSION: _ANY,
    ExitCause.HOST_UNSUPPORTED: _ANY | {D.RETRY},
    ExitCause.INTERNAL: _ANY | {D.RETRY},
    ExitCause.UNKNOWN: _ANY,
}


def an_exit(
    cause: ExitCause = ExitCause.NO_MEMORY,
    attempt: int = 1,
    *,
    allowed: frozenset[DecisionKind] | None = None,
    vcpu: str = "vms/a/vcpus/0",
) -> ExitView:
    """An open exit about XFD at its `attempt`-th try to grow to 10,752 bytes."""
    return ExitView(
        name=f"{vcpu}/exits/3",
        vcpu=vcpu,
        vcpu_uid="uid",
        seq=3,
        generation=attempt,
        state=ExitState.OPEN,
        cause=cause,
        trigger=ExitTrigger.WRMSR_XFD,
        errno=12,
        errno_name="ENOMEM",
        attempt=attempt,
        bytes_needed=10_752,
        xfeatures=1 << 18,
        allowed_decisions=ALLOWED[cause] if allowed is None else allowed,
    )


def told(text: str, exit_view: ExitView, history: ExitHistory = NO_HISTORY) -> str:
    """The decision of a policy about an exit, as a word; waits without their jitter."""
    decision = decide(parse_policy(text), exit_view, history, lambda _name, _attempt: 0)
    if decision is None:
        return "nothing"
    return f"RETRY_AFTER {decision.delay_s:g}s" if isinstance(decision, RetryAfter) else decision.kind.name


TABLES: Final = {
    "the default waits five times for memory, each time twice as long, then pauses": (
        "default",
        """
        1 NO_MEMORY: RETRY_AFTER 0.1s
        2 NO_MEMORY: RETRY_AFTER 0.2s
        3 NO_MEMORY: RETRY_AFTER 0.4s
        4 NO_MEMORY: RETRY_AFTER 0.8s
        5 NO_MEMORY: RETRY_AFTER 1.6s
        6 NO_MEMORY: PAUSE
        """,
    ),
    "the default does for a byte limit what it does for memory": (
        "default",
        """
        1 QUOTA: RETRY_AFTER 0.1s
        6 QUOTA: PAUSE
        """,
    ),
    "the default refuses what cannot be had, and never guesses": (
        "default",
        """
        1 NO_PERMISSION: INJECT_GP
        1 HOST_UNSUPPORTED: INJECT_GP
        1 INTERNAL: KILL_VM
        1 UNKNOWN: PAUSE
        """,
    ),
    "the default's waits can be given": (
        "default:base=1s,factor=10,max=20,tries=3",
        """
        1 NO_MEMORY: RETRY_AFTER 1s
        2 NO_MEMORY: RETRY_AFTER 10s
        3 NO_MEMORY: RETRY_AFTER 20s
        4 NO_MEMORY: PAUSE
        """,
    ),
    "a retry is bounded": (
        "retry:tries=2",
        """
        1 NO_MEMORY: RETRY
        2 NO_MEMORY: RETRY
        3 NO_MEMORY: PAUSE
        """,
    ),
    "each link of a chain counts from where the one before it stopped": (
        "retry:tries=2,then=retry-after:base=100ms,tries=2,then=inject-gp",
        """
        1 NO_MEMORY: RETRY
        2 NO_MEMORY: RETRY
        3 NO_MEMORY: RETRY_AFTER 0.1s
        4 NO_MEMORY: RETRY_AFTER 0.2s
        5 NO_MEMORY: INJECT_GP
        """,
    ),
    "a link whose decision is not allowed uses no attempt up": (
        "raise-limit:to=1MiB,then=retry:tries=1,then=kill-vcpu",
        """
        1 QUOTA: RAISE_LIMIT
        2 QUOTA: RETRY
        3 QUOTA: KILL_VCPU
        1 NO_MEMORY: RETRY
        2 NO_MEMORY: KILL_VCPU
        """,
    ),
    "what may not be retried falls through to the next link": (
        "retry-after,then=kill-vm",
        """
        1 NO_PERMISSION: KILL_VM
        """,
    ),
    "what no link can say is a pause": (
        "migrate:target=unix:/other",
        """
        1 NO_MEMORY: PAUSE
        """,
    ),
    "a silent policy says nothing, also behind another": (
        "retry:tries=1,then=silent",
        """
        1 NO_MEMORY: RETRY
        2 NO_MEMORY: nothing
        """,
    ),
}


@pytest.mark.parametrize(("text", "table"), TABLES.values(), ids=list(TABLES))
def test_a_policy_decides_by_its_table(text: str, table: str) -> None:
    """A policy's decision about each attempt is the one that its table shows."""
    for row in filter(None, map(str.strip, table.splitlines())):
        case, expected = row.split(": ")
        attempt, cause = case.split()
        assert told(text, an_exit(ExitCause[cause], int(attempt))) == expected, row


def test_reclaim_follows_the_waits_where_the_host_offers_it() -> None:
    """After its five waits the default takes memory from others once, and only then pauses."""
    allowed = _MEMORY | {D.RECLAIM}
    sixth, seventh = (told("default", an_exit(attempt=attempt, allowed=allowed)) for attempt in (6, 7))
    assert (sixth, seventh) == ("RECLAIM", "PAUSE")


def test_a_vcpu_is_not_deferred_for_ever() -> None:
    """DEFER sends the guest round in circles with a new exit each time, so it is counted per vCPU."""
    exit_view = an_exit(allowed=_MEMORY | {D.DEFER})
    told_after = [told("defer:tries=2,then=inject-gp", exit_view, ExitHistory(deferrals)) for deferrals in range(3)]
    assert told_after == ["DEFER", "DEFER", "INJECT_GP"]


def test_an_exit_for_information_is_left_alone() -> None:
    """Where nothing is allowed, nothing is decided."""
    assert told("default", an_exit(allowed=frozenset())) == "nothing"


def test_a_vm_may_have_a_policy_of_its_own() -> None:
    """The VM's policy answers for the VM's exits, the common one for all others."""
    book = parse_policies(["vms/a=kill-vm", "retry"])
    draw = seeded_draw(0)
    of_a = book.decide(an_exit(), NO_HISTORY, draw)
    of_b = book.decide(an_exit(vcpu="vms/b/vcpus/0"), NO_HISTORY, draw)
    assert of_a is not None
    assert of_b is not None
    assert (of_a.kind, of_b.kind) == (D.KILL_VM, D.RETRY)


def test_a_book_without_texts_has_the_default_policy() -> None:
    """A controller that is told nothing does what is reasonable."""
    assert parse_policies([]) == PolicyBook()


# -- jitter ------------------------------------------------------------------------------------------------------------


def delays(seed: int, name: str) -> list[float]:
    """The first eight waits of an exit."""
    draw = seeded_draw(seed)
    return [Backoff().delay_s(name, attempt, draw) for attempt in range(1, 9)]


def test_the_same_seed_waits_the_same_time() -> None:
    """A run with the same seed repeats its waits; another seed, and another exit, has others."""
    assert delays(7, "x") == delays(7, "x")
    assert delays(7, "x") != delays(8, "x")
    assert delays(7, "x") != delays(7, "y")


@given(seed=st.integers(0, 2**64 - 1), attempt=st.integers(1, 10_000), jitter=st.floats(0, 1))
def test_jitter_only_shortens_a_wait_and_never_to_nothing(seed: int, attempt: int, jitter: float) -> None:
    """A wait lies between its share without jitter and its full length, and is one the host takes."""
    backoff = Backoff(base_s=0.1, factor=2, max_s=5, jitter=jitter)
    full = min(0.1 * 2 ** min(attempt - 1, 100), 5)
    delay = backoff.delay_s("x", attempt, seeded_draw(seed))
    assert max(full * (1 - jitter) - 1e-6, 0.001) <= delay <= full + 1e-6


# -- whatever the policy -----------------------------------------------------------------------------------------------

#: Texts of every policy of the registry, with the parameters that some insist on.
_REQUIRED: Final = {"raise-limit": "raise-limit:to=1MiB", "migrate": "migrate:target=unix:/x"}
_LINKS: Final = st.sampled_from([_REQUIRED.get(name, name) for name in POLICIES])


def _chained(links: list[str]) -> str:
    text = links[-1]
    for link in reversed(links[:-1]):
        text = f"{link}{',' if ':' in link else ':'}then={text}"
    return text


@given(
    text=st.lists(_LINKS, min_size=1, max_size=4).map(_chained),
    allowed=st.frozensets(st.sampled_from(DecisionKind)),
    cause=st.sampled_from(ExitCause),
    attempt=st.integers(1, 50),
    deferrals=st.integers(0, 5),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_decision_is_always_allowed(
    text: str, allowed: frozenset[DecisionKind], cause: ExitCause, attempt: int, deferrals: int, seed: int
) -> None:
    """Whatever policies are put together, what comes out is among the allowed decisions, and the same each time."""
    policy, exit_view = parse_policy(text), an_exit(cause, attempt, allowed=allowed)
    decision = decide(policy, exit_view, ExitHistory(deferrals), seeded_draw(seed))
    assert decision is None or decision.kind in allowed
    assert decision is not None or D.PAUSE not in allowed or "silent" in text
    assert decision == decide(policy, exit_view, ExitHistory(deferrals), seeded_draw(seed))


@pytest.mark.parametrize("kind", get_args(Decision), ids=lambda kind: kind.kind.name)
def test_every_decision_has_its_message(kind: type[Decision]) -> None:
    """A decision's message is the field of the wire's oneof that has its number."""
    needed: dict[str, object] = {"RetryAfter": {"delay_s": 1.5}, "RaiseLimit": {"limit_bytes": 1}}
    needed["Migrate"] = {"target": "unix:/x"}
    decision = kind(**needed.get(kind.__name__, {}))  # type: ignore[arg-type]
    message = decision_to_proto(decision)
    name = message.WhichOneof("kind")
    assert name is not None
    assert name.upper() == decision.kind.name
    assert message.DESCRIPTOR.fields_by_name[name].number == decision.kind.value
