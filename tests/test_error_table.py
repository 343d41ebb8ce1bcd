"""The error table of the docs: complete, and made of what the registry knows."""

from __future__ import annotations

import pytest

from host_agent.service.access.matrix import MATRIX
from host_agent.service.errors import CODES
from tools.error_table import COMMON, event_reasons, reasons_by_method, registry

#: What no call of this release sends: its part of the contract is not built, or another answer came to be.
NOT_SENT = {
    "DEADLINE_REQUIRED",
    "UNIMPLEMENTED_CALL",
    "VCPU_PAUSED",
    "VCPU_BUSY",
    "FEATURE_UNSUPPORTED",
    "CONTROL_NOT_FOUND",
}


def test_every_method_has_a_line() -> None:
    """Of the contract; health and reflection have no errors of ours."""
    assert set(reasons_by_method()) == {path for path in MATRIX if path.startswith("/fpstate.")}


def test_every_reason_is_sent_by_something_or_is_known_not_to_be() -> None:
    """A reason that nobody sends any more, or again, is noticed."""
    sent = {*COMMON, *event_reasons(), *(reason for reasons in reasons_by_method().values() for reason in reasons)}
    assert set(CODES) - sent == NOT_SENT


def test_the_registry_has_a_code_and_metadata_for_each() -> None:
    """And the code is that of the table by which a status is made."""
    assert set(registry()) == set(CODES)
    for reason, (meaning, code, metadata) in registry().items():
        assert meaning, reason
        assert metadata, reason
        if reason != "KVM_ERRNO":
            assert code.startswith(CODES[reason].name), reason


@pytest.mark.parametrize(
    ("method", "reasons"),
    [
        ("/fpstate.v1.HostService/GetHostInfo", ()),
        ("/fpstate.v1.VmService/GetVm", ("NOT_OWNER", "VM_NOT_FOUND")),
        ("/fpstate.v1.VcpuService/DeleteVcpu", ("VCPU_ALREADY_ENTERED", "VCPU_NOT_FOUND")),
        ("/fpstate.v1.ExitService/ResolveExit", ("CONTROL_FENCED", "EXIT_ALREADY_RESOLVED", "EXIT_STALE_GENERATION")),
        ("/fpstate.v1.GuestSessionService/Attach", ("ATTACH_OUT_OF_ORDER", "HOST_DRAINING", "SESSION_FENCED")),
    ],
)
def test_what_is_read_off_the_code_is_what_a_reader_finds(method: str, reasons: tuple[str, ...]) -> None:
    """Some lines, by hand."""
    assert set(reasons) <= set(reasons_by_method()[method])


def test_a_refusal_of_one_event_is_none_of_the_call() -> None:
    """SEQ_GAP rejects an event of a batch, and leaves the call alone."""
    assert "SEQ_GAP" in event_reasons()
    assert "SEQ_GAP" not in reasons_by_method()["/fpstate.v1.GuestSessionService/SubmitEvents"]
