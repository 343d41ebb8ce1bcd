"""Policies as texts, exits as messages: what a controller reads, and what it says about what it cannot read."""

from __future__ import annotations

import enum
from typing import Any, Final

import pytest
from fpstate.v1 import exit_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from vmm_controller.config import ControllerConfig
from vmm_controller.exit_proto import duration_of, exit_from_proto
from vmm_controller.policy import (
    Always,
    Backoff,
    Chain,
    DecisionKind,
    ExitCause,
    ExitResult,
    ExitState,
    ExitTrigger,
    Pause,
    PolicyTextError,
    RaiseLimit,
    RaiseLimitPolicy,
    RetryAfterPolicy,
    RetryPolicy,
    parse_policies,
    parse_policy,
)


def test_a_text_is_read_with_its_units() -> None:
    """Delays, factors, sizes and the policy behind are what the text says."""
    assert parse_policy("retry-after:base=0.1,factor=2,max=5,tries=5,then=pause") == Chain(
        (RetryAfterPolicy(tries=5, backoff=Backoff(base_s=0.1, factor=2, max_s=5)), Always(Pause()))
    )
    assert parse_policy("retry-after:base=20ms,jitter=0") == RetryAfterPolicy(backoff=Backoff(base_s=0.02, jitter=0))
    assert parse_policy("retry-after:base=20s") == RetryAfterPolicy(backoff=Backoff(base_s=20, max_s=20))
    assert parse_policy("raise-limit:to=64KiB,scope=host") == RaiseLimitPolicy(raised=RaiseLimit(65_536, of_host=True))
    assert parse_policy("retry:then=retry:tries=1,then=pause") == Chain(
        (RetryPolicy(), Chain((RetryPolicy(tries=1), Always(Pause()))))
    )


BAD: Final = {
    "retri": "there is no policy 'retri'; expected one of default, retry,",
    "": "there is no policy ''",
    "retry:tries": "'tries': expected key=value",
    "retry:tries=": "'tries=': expected key=value",
    "retry:tries=0": "tries: expected 1 or more, got 0",
    "retry:tries=two": "tries: expected a whole number, got 'two'",
    "retry:tries=1,tries=2": "tries is given twice",
    "retry:base=1": "retry has no parameter 'base'; expected one of tries, then",
    "retry-after:base=fast": "base: expected a delay like 0.1, 100ms or 2s, got 'fast'",
    "retry-after:base=1h": "base: expected a delay",
    "retry-after:base=9,max=3": "max: expected 9 to 3600, got 3",
    "retry-after:factor=0.5": "factor: expected 1 to 1000, got 0.5",
    "retry-after:factor=nan": "factor: expected a number",
    "retry-after:jitter=2": "jitter: expected 0 to 1, got 2",
    "raise-limit": "raise-limit: expected to=SIZE, the new limit",
    "raise-limit:to=1MB": "to: expected a size like 4096, 64KiB or 2MiB, got '1MB'",
    "raise-limit:to=1MiB,scope=all": "scope: expected vm or host, got 'all'",
    "migrate": "target: expected a gRPC target",
    "retry:then=kill": "then: there is no policy 'kill'",
    "retry:tries=2,then=retry-after:base=0": "then: retry-after: base: expected 0.001 to 3600, got 0",
    "vms/A=retry": "'vms/A' is no VM's name",
    "vms/a": "expected vms/a=POLICY",
    "vms/a=pauze": "there is no policy 'pauze'",
}


@pytest.mark.parametrize(("text", "complaint"), BAD.items(), ids=list(BAD))
def test_a_bad_text_is_refused_by_its_bad_part(text: str, complaint: str) -> None:
    """The error quotes the policy, names the part that is wrong, and says what was expected."""
    with pytest.raises(PolicyTextError) as caught:
        parse_policies([text])
    assert complaint in str(caught.value)


@pytest.mark.parametrize("texts", [["retry", "pause"], ["vms/a=retry", "vms/a=pause"]], ids=["common", "of one VM"])
def test_a_second_policy_for_the_same_vms_is_refused(texts: list[str]) -> None:
    """Which of two would hold is not guessed."""
    with pytest.raises(PolicyTextError, match="a second policy for"):
        parse_policies(texts)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("name", "", id="a name must be there"),
        pytest.param("scope", "vms/a/vcpus/0", id="a scope is a VM or the host"),
        pytest.param("lease_s", -1.0, id="a lease is not negative"),
        pytest.param("decisions_max", 0, id="at least one decision at a time"),
    ],
)
def test_a_controller_that_cannot_work_is_refused(field: str, value: object) -> None:
    """A configuration names the field that cannot be right."""
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        ControllerConfig(**arguments)


# -- the edge to the wire ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "descriptor", "prefix"),
    [
        (ExitState, pb.ExitState.DESCRIPTOR, "EXIT_STATE_"),
        (ExitCause, pb.ExitCause.DESCRIPTOR, "EXIT_CAUSE_"),
        (ExitTrigger, pb.ExitTrigger.DESCRIPTOR, "EXIT_TRIGGER_"),
        (ExitResult, pb.ExitResult.DESCRIPTOR, "EXIT_RESULT_"),
        (DecisionKind, pb.DecisionKind.DESCRIPTOR, "DECISION_KIND_"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_enums_are_those_of_the_wire(ours: type[enum.Enum], descriptor: Any, prefix: str) -> None:  # noqa: ANN401
    """Every value of the wire's enum is here under the same name and number."""
    theirs = {value.number: value.name.removeprefix(prefix) for value in descriptor.values if value.number}
    assert {member.value: member.name for member in ours if member.value} == theirs


def test_an_exit_is_read_whole() -> None:
    """An exit's masks, sizes, numbers and deadline arrive as they were sent."""
    message = pb.Exit(
        name="vms/a/vcpus/0/exits/7",
        vcpu="vms/a/vcpus/0",
        vcpu_uid="u",
        seq=7,
        generation=2,
        state=pb.EXIT_STATE_OPEN,
        errno_value=12,
        errno_name="ENOMEM",
        cause=pb.EXIT_CAUSE_QUOTA,
        trigger=pb.EXIT_TRIGGER_XSETBV,
        old_xcr0=0x7,
        new_xcr0=0x600E7,
        xfeatures=1 << 63,
        bytes_needed=10_752,
        attempt=2,
        allowed_decisions=[pb.DECISION_KIND_RETRY, pb.DECISION_KIND_PAUSE],
        expires_in=Duration(seconds=29, nanos=500_000_000),
        update_revision=40,
    )
    view = exit_from_proto(message)
    assert view.vm == "vms/a"
    assert (view.state, view.cause, view.trigger) == (ExitState.OPEN, ExitCause.QUOTA, ExitTrigger.XSETBV)
    assert (view.new_xcr0, view.xfeatures, view.bytes_needed) == (0x600E7, 1 << 63, 10_752)
    assert view.allowed_decisions == {DecisionKind.RETRY, DecisionKind.PAUSE}
    assert view.expires_in_s == 29.5
    assert exit_from_proto(pb.Exit()).expires_in_s is None


def test_what_a_newer_host_says_is_unknown_and_not_guessed() -> None:
    """Numbers that this release has no name for become UNKNOWN, and unknown decisions are not offered."""
    view = exit_from_proto(
        pb.Exit(cause=99, state=98, allowed_decisions=[97, pb.DECISION_KIND_PAUSE])  # type: ignore[arg-type, list-item]
    )
    assert (view.cause, view.state) == (ExitCause.UNKNOWN, ExitState.UNKNOWN)
    assert view.allowed_decisions == {DecisionKind.PAUSE}


@pytest.mark.parametrize("seconds", [0.001, 0.1, 1.6, 3599.999999, 3600.0])
def test_a_delay_keeps_its_microseconds(seconds: float) -> None:
    """A delay in seconds becomes a Duration of the same length."""
    assert duration_of(seconds).ToMicroseconds() == round(seconds * 1_000_000)
