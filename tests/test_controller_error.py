"""Which refusals a controller waits out, and which it must not repeat."""

from __future__ import annotations

import grpc
import pytest

from vmm_controller.error import CallError


@pytest.mark.parametrize(
    ("code", "reason", "transient"),
    [
        pytest.param(grpc.StatusCode.UNAVAILABLE, "", True, id="the host is not there yet"),
        pytest.param(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_REACHED", True, id="it was too slow this once"),
        pytest.param(grpc.StatusCode.ABORTED, "VCPU_BUSY", True, id="it is busy with the vCPU"),
        pytest.param(grpc.StatusCode.ABORTED, "MIGRATION_IN_PROGRESS", True, id="the VM is about to leave"),
        pytest.param(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", True, id="this controller asks too often"),
        pytest.param(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL", True, id="its disk is full"),
        pytest.param(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "ALLOCATION_FAILED", False, id="memory: a decision, no repetition"
        ),
        pytest.param(grpc.StatusCode.ABORTED, "EXIT_STALE_GENERATION", False, id="the exit has moved on"),
        pytest.param(grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", False, id="it may not"),
    ],
)
def test_what_goes_away_by_itself(code: grpc.StatusCode, reason: str, transient: bool) -> None:
    """A transient refusal is tried again; any other is the caller's to think about."""
    assert CallError(code, "text", reason=reason).transient == transient
