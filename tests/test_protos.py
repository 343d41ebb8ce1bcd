"""The wire contract holds every call that it promises, keeps its own rules, and carries 64-bit masks unharmed.

The rules that buf checks (names, comments, one request and response per call) are in protos/buf.yaml.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fpstate.v1 import common_pb2, errors_pb2, event_pb2, exit_pb2
from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor, MethodDescriptor

from tools.protoc import PROTOS, CompilerMissingError, proto_files, run_protoc

# fmt: off
#: Every service of the contract with every call.
CONTRACT = {
    "fpstate.v1.HostService": {"GetHostInfo", "UpdateHost", "DrainHost"},
    "fpstate.v1.VmService": {
        "CreateVm", "GetVm", "ListVms", "UpdateVm", "DeleteVm", "ResetVm",
        "RequestPermission", "GetPermission", "SetCpuid", "GetSupportedCpuid", "GetRequiredSize",
    },
    "fpstate.v1.TaskService": {
        "CreateTask", "CloneTask", "ExecTask", "ExitTask", "GetTask", "ListTasks",
        "ScheduleTask", "PreemptTask", "UseFeature", "KernelFpu", "SetAltstack",
    },
    "fpstate.v1.VcpuService": {
        "CreateVcpu", "GetVcpu", "ListVcpus", "DeleteVcpu",
        "GetXsave", "SetXsave", "GetXcrs", "SetXcrs", "GetMsrs", "SetMsrs",
    },
    "fpstate.v1.GuestSessionService": {
        "OpenSession", "KeepAlive", "CloseSession", "Attach", "SubmitEvents", "WaitOutcome", "ListSessions",
    },
    "fpstate.v1.ExitService": {
        "AcquireControl", "RenewControl", "ReleaseControl", "WatchExits", "ListExits", "GetExit", "ResolveExit",
        "ListDecisions",
    },
    "fpstate.v1.MigrationService": {
        "ExportVm", "ImportVm", "CheckCompat", "BeginMigration", "StageMigration", "CommitMigration", "AbortMigration",
        "GetMigration", "ListMigrations",
    },
    "fpstate.v1.WatchService": {"Watch"},
    "fpstate.fault.v1.FaultService": {
        "ArmFault", "DisarmFault", "GetFault", "ListFaults", "ResetFaults", "RenewFaults", "WatchFaults", "Evaluate",
        "AdvanceClock",
    },
}

#: Unary calls that change nothing.
READING = re.compile(r"Get|List|Check|Wait")
#: Unary calls that change something and need no request_id, with what makes a repetition harmless instead.
IDEMPOTENT = {
    "KeepAlive": "renewing twice is renewing once",
    "RenewControl": "renewing twice is renewing once",
    "SubmitEvents": "events carry sequence numbers",
}

#: Macros of C's headers, which would tear up a C++ class with a field of that name.
C_MACROS = {"errno", "major", "minor", "makedev", "stdin", "stdout", "stderr", "signbit", "isnan", "assert"}
# fmt: on

EVERY_BIT = 2**64 - 1


def _files() -> list[FileDescriptor]:
    """Import the generated module of every proto; return what each says of itself."""
    names = [".".join(path.relative_to(PROTOS).with_suffix("").parts) for path in proto_files()]
    return [importlib.import_module(f"{name}_pb2").DESCRIPTOR for name in names]


def _calls() -> Iterator[MethodDescriptor]:
    for file in _files():
        for service in file.services_by_name.values():
            yield from service.methods


def _messages() -> Iterator[Descriptor]:
    for file in _files():
        waiting = list(file.message_types_by_name.values())
        while waiting:
            message = waiting.pop()
            waiting += message.nested_types
            yield message


def _enums() -> Iterator[EnumDescriptor]:
    for file in _files():
        yield from file.enum_types_by_name.values()
    for message in _messages():
        yield from message.enum_types


@pytest.fixture
def described(tmp_path: Path) -> descriptor_pb2.FileDescriptorSet:
    """Every proto as the compiler describes it, comments included."""
    target = tmp_path / "fpstate.binpb"
    try:
        run_protoc("--include_source_info", f"--descriptor_set_out={target}")
    except CompilerMissingError as missing:
        pytest.skip(f"no protobuf compiler: {missing}")
    return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())


def test_the_contract_holds_every_service_and_call() -> None:
    """There is neither a call too few nor one that the table does not know."""
    found: dict[str, set[str]] = {}
    for call in _calls():
        found.setdefault(call.containing_service.full_name, set()).add(call.name)
    assert found == CONTRACT


def test_every_service_has_a_file_of_its_own() -> None:
    """A client of one service imports one module."""
    assert [file.name for file in _files() if len(file.services_by_name) > 1] == []


def test_every_generated_module_imports() -> None:
    """The modules of messages and of services import under their package's own name, without a path set up for them."""
    for file in _files():
        module = file.name.removesuffix(".proto").replace("/", ".")
        for service in file.services_by_name:
            assert hasattr(importlib.import_module(f"{module}_pb2_grpc"), f"{service}Stub")


def test_every_enum_begins_with_unspecified() -> None:
    """A field that nobody set says so: zero is no meaning of its own."""
    wrong = [enum.full_name for enum in _enums() if not enum.values_by_number[0].name.endswith("_UNSPECIFIED")]
    assert wrong == []


def test_every_request_that_changes_something_can_be_repeated() -> None:
    """A unary call that changes something has a request_id, or one of the reasons in the table for not needing it."""
    changing = [call for call in _calls() if not (_streams(call) or READING.match(call.name))]
    lacking = {call.name for call in changing if "request_id" not in call.input_type.fields_by_name}
    assert lacking == IDEMPOTENT.keys()


def test_every_response_begins_with_the_header() -> None:
    """Replies and stream messages say which host spoke, and when in its history."""
    for call in _calls():
        first = call.output_type.fields_by_number[1]
        assert first.name == "header", call.full_name
        assert first.message_type is common_pb2.ResponseHeader.DESCRIPTOR, call.full_name


def test_masks_are_unsigned_and_64_bits_wide() -> None:
    """What holds a bit per xfeature is a uint64 wherever it occurs."""
    masks = re.compile(r"(\w+_)?(xfeatures|xcr0|xfd|xfd_err|xstate_bv|xcomp_bv|xcr0_mask|perm|permitted)")
    named = [field for field in _fields() if masks.fullmatch(field.name) and field.message_type is None]
    assert len(named) > 20
    assert [field.full_name for field in named if field.type != FieldDescriptor.TYPE_UINT64] == []


def test_no_field_is_named_after_a_c_macro() -> None:
    """`errno` as a field compiles everywhere but in C++."""
    assert [field.full_name for field in _fields() if field.name in C_MACROS] == []


def _fields() -> Iterator[FieldDescriptor]:
    for message in _messages():
        yield from message.fields


def _streams(call: MethodDescriptor) -> bool:
    return bool(call.client_streaming or call.server_streaming)


def test_every_reason_names_its_status_code(described: descriptor_pb2.FileDescriptorSet) -> None:
    """The comment of each reason gives a gRPC code, by which a client goes that does not know the reason."""
    codes = {code.name for code in grpc.StatusCode}
    comments = _comments_of_values(described, errors_pb2.ErrorReason.DESCRIPTOR)
    del comments["ERROR_REASON_UNSPECIFIED"]
    assert len(comments) == len(errors_pb2.ErrorReason.DESCRIPTOR.values) - 1
    for reason, comment in comments.items():
        said = re.search(r"Code: (.+?)\.(?=\s|$)", comment, re.DOTALL)
        assert said, f"{reason}: no `Code:` in its comment"
        assert codes & set(re.findall(r"[A-Z_]{2,}", comment[said.start() :])), f"{reason}: {said[0]} is no gRPC code"


def test_every_reason_fits_an_error_info() -> None:
    """A reason without its prefix is upper case and at most 63 characters long, as ErrorInfo asks."""
    for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,61}[A-Z0-9]", name.removeprefix("ERROR_REASON_"))


def _comments_of_values(described: descriptor_pb2.FileDescriptorSet, enum: EnumDescriptor) -> dict[str, str]:
    """Return the comment above each value of a top-level enum.

    A place in a proto is a path of field numbers: 5 is FileDescriptorProto.enum_type, 2 is EnumDescriptorProto.value.
    Source: google/protobuf/descriptor.proto, SourceCodeInfo.Location.path.
    """
    (file,) = [file for file in described.file if file.name == enum.file.name]
    index = [candidate.name for candidate in file.enum_type].index(enum.name)
    places = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    values = file.enum_type[index].value
    return {value.name: places.get((5, index, 2, number), "") for number, value in enumerate(values)}


def test_a_mask_with_every_bit_survives_the_binary_form() -> None:
    """2^64 - 1 comes back from bytes as it went in."""
    sent = common_pb2.Fpstate(xfeatures=EVERY_BIT, xfd=EVERY_BIT)
    received = common_pb2.Fpstate.FromString(sent.SerializeToString())
    assert (received.xfeatures, received.xfd) == (EVERY_BIT, EVERY_BIT)


def test_a_mask_with_every_bit_is_a_string_in_json() -> None:
    """JSON's numbers end at 2^53, so the mapping shows a uint64 as a string of decimal digits, and reads it back."""
    text = json_format.MessageToJson(exit_pb2.Exit(xfeatures=EVERY_BIT, new_xcr0=1 << 18))
    shown = json.loads(text)
    assert shown["xfeatures"] == "18446744073709551615"
    assert shown["newXcr0"] == "262144"
    assert json_format.Parse(text, exit_pb2.Exit()).xfeatures == EVERY_BIT


def test_a_mask_as_java_holds_it_is_the_same_on_the_wire() -> None:
    """Java's signed -1 and an unsigned 2^64 - 1 are the same ten bytes."""
    held_in_java = int.from_bytes(EVERY_BIT.to_bytes(8), signed=True)
    assert held_in_java == -1
    field = common_pb2.Fpstate(xfeatures=EVERY_BIT).SerializeToString()
    assert field == bytes([3 << 3]) + b"\xff" * 9 + b"\x01"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(-1, id="a negative number is no mask"),
        pytest.param(EVERY_BIT + 1, id="nor is one of 65 bits"),
    ],
)
def test_a_mask_out_of_range_is_refused_before_it_is_sent(wrong: int) -> None:
    """The generated class itself refuses what does not fit."""
    with pytest.raises(ValueError, match="out of range"):
        common_pb2.Fpstate(xfeatures=wrong)


def test_the_packed_kinds_are_the_numbers_of_the_events() -> None:
    """A packed record's `kind` is the field number in GuestEvent.kind, 3 (enter) to 18 (xsave), none left out."""
    kinds = event_pb2.GuestEvent.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert sorted(field.number for field in kinds) == list(range(3, 19))
    assert {field.number: field.name for field in kinds}[18] == "xsave"


def test_the_decisions_have_the_numbers_of_their_kinds() -> None:
    """Decision.kind and DecisionKind name the same decisions with the same numbers."""
    by_field = {
        field.name.upper(): field.number for field in exit_pb2.Decision.DESCRIPTOR.oneofs_by_name["kind"].fields
    }
    by_value = {name.removeprefix("DECISION_KIND_"): number for name, number in exit_pb2.DecisionKind.items() if number}
    assert by_field == by_value
