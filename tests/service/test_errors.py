"""One table from reasons to status codes, and the google.rpc.Status that is built from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fpstate.v1 import errors_pb2
from google.rpc import error_details_pb2
from grpc import StatusCode

from fpu_core.errors import CoreBug, FieldError
from host_agent.errors import Reason, Refused, invalid
from host_agent.service.errors import CODES, Failure, failure_of, field_invalid, status_of
from tests.service.world import details, error_info

ERRORS_PROTO = Path(__file__).parents[2] / "protos/fpstate/v1/errors.proto"
REGISTRY = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118


def test_every_reason_of_the_registry_has_a_code() -> None:
    """The table has one row per value of ErrorReason, and none beside."""
    assert set(CODES) == REGISTRY


def test_the_machine_says_what_the_registry_knows() -> None:
    """Every reason of the machine is one of the wire, by the same name."""
    assert {reason.name for reason in Reason} <= REGISTRY


def test_the_codes_are_the_documented_ones() -> None:
    """The comment of each value names its code; KVM_ERRNO's depends on the errno."""
    value = re.compile(r"((?:  //.*\n)+)  ERROR_REASON_(\w+) = \d+;")
    documented = {}
    for comment, name in value.findall(ERRORS_PROTO.read_text()):
        code = re.search(r"Code: ([A-Z_]+)", comment)
        if code is not None:
            documented[name] = code[1]
    assert documented.keys() >= REGISTRY - {"KVM_ERRNO"}
    assert {name: CODES[name].name for name in documented} == documented


@pytest.mark.parametrize(
    ("errno", "code"),
    [
        pytest.param(1, StatusCode.PERMISSION_DENIED, id="EPERM is PERMISSION_DENIED"),
        pytest.param(22, StatusCode.INVALID_ARGUMENT, id="EINVAL is INVALID_ARGUMENT"),
        pytest.param(12, StatusCode.RESOURCE_EXHAUSTED, id="ENOMEM is RESOURCE_EXHAUSTED"),
        pytest.param(16, StatusCode.FAILED_PRECONDITION, id="EBUSY is FAILED_PRECONDITION"),
    ],
)
def test_a_kernels_errno_says_its_own_code(errno: int, code: StatusCode) -> None:
    """KVM_ERRNO has the code of its errno."""
    assert Failure.because("KVM_ERRNO", "no", errno=errno).code is code


def test_a_status_says_what_programs_need() -> None:
    """One ErrorInfo with the text's variables, and a BadRequest with the field's path."""
    status = status_of(field_invalid("vm.labels", "at most 64 labels", 65))
    assert status.code == StatusCode.INVALID_ARGUMENT.value[0]
    info = error_info(status)
    assert info.reason == "FIELD_INVALID"
    assert dict(info.metadata) == {"field": "vm.labels", "expected": "at most 64 labels"}
    (bad,) = (detail for detail in details(status) if isinstance(detail, error_details_pb2.BadRequest))
    assert [violation.field for violation in bad.field_violations] == ["vm.labels"]


def test_who_may_try_again_hears_when() -> None:
    """RetryInfo comes with what frees itself, with the exact time where that is known."""
    held = Failure.because("CONTROL_HELD", "held", scope="", holder="x", remainingMillis=2500)
    (retry,) = (detail for detail in details(status_of(held)) if isinstance(detail, error_details_pb2.RetryInfo))
    assert retry.retry_delay.ToMilliseconds() == 2500
    missing = Failure.because("VM_NOT_FOUND", "no", vm="vms/x")
    assert not any(isinstance(detail, error_details_pb2.RetryInfo) for detail in details(status_of(missing)))


def test_every_kind_of_refusal_comes_out_the_same_way() -> None:
    """The machine's, the core's and the service's own; what nobody has foreseen is none."""
    of_the_machine = failure_of(invalid("seq", "1 or more", 0))
    of_the_core = failure_of(FieldError("seq", "1 or more", 0))
    of_the_service = failure_of(field_invalid("seq", "1 or more", 0))
    for failure in (of_the_machine, of_the_core, of_the_service):
        assert failure is not None
        assert (failure.reason, failure.field, failure.metadata["field"]) == ("FIELD_INVALID", "seq", "seq")
    bug = failure_of(CoreBug("xfd cache != XFD"))
    assert bug is not None
    assert bug.reason == "INTERNAL_INVARIANT"
    assert failure_of(Refused(Reason.VM_NOT_FOUND, "no", vm="x")) is not None
    assert failure_of(KeyError("x")) is None


def test_an_unregistered_reason_is_our_bug() -> None:
    """A reason that no client can know cannot be made."""
    with pytest.raises(AssertionError, match="not in the registry"):
        Failure("SOMETHING_NEW", "?")
