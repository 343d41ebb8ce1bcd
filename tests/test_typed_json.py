"""Values as JSON and back: everything an image may hold, and every way in which what comes in may be something else."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace

import pytest

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fpu_core.errors import FieldError
from host_agent.commands import ArmFault, CreateVcpu, CreateVm, RequestPermission
from host_agent.events import DoneOutcome, Hlt, InjectOutcome, Xsetbv
from host_agent.exits import Decision, DecisionKind
from host_agent.image_form import IMAGE_BYTES_MAX, MAGIC, pack_image, unpack_image
from host_agent.typed_json import from_json, to_json
from host_agent.vm_image import OutcomeImage, VmImage, WinnerImage
from host_agent.vm_restore import check_image
from tests.migration_nodes import Node


@dataclass(frozen=True)
class Sample:
    """One field of each kind."""

    number: int
    maybe: int | None
    flag: bool
    text: str
    raw: bytes
    pairs: tuple[tuple[int, int], ...]
    kind: DecisionKind
    labels: dict[str, str]


SAMPLE = Sample(
    number=1,
    maybe=None,
    flag=True,
    text="x",
    raw=b"\x00\xff",
    pairs=((1, 2),),
    kind=DecisionKind.RETRY,
    labels={"a": "b"},
)


def test_back_and_forth() -> None:
    """What is written is read, and the JSON is JSON."""
    assert from_json(Sample, json.loads(json.dumps(to_json(SAMPLE))), "s") == SAMPLE
    assert from_json(Sample, to_json(replace(SAMPLE, maybe=2**64 - 1)), "s").maybe == 2**64 - 1
    winner = WinnerImage(generation=1, decided_by="c", decision=Decision(DecisionKind.PAUSE), request_id="")
    assert from_json(WinnerImage, to_json(winner), "w") == winner
    for kind in (DoneOutcome(value=1, data=b"x"), InjectOutcome(13, 0, 0)):
        image = OutcomeImage(seq=1, kind=kind)
        assert from_json(OutcomeImage, to_json(image), "o") == image


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("number", -1, "s.number"),
        ("number", 2**64, "s.number"),
        ("number", True, "s.number"),
        ("number", 1.5, "s.number"),
        ("number", "1", "s.number"),
        ("number", None, "s.number"),
        ("maybe", "x", "s.maybe"),
        ("flag", 1, "s.flag"),
        ("text", 1, "s.text"),
        ("raw", "0", "s.raw"),
        ("raw", 3, "s.raw"),
        ("pairs", {}, "s.pairs"),
        ("pairs", [[1]], "s.pairs[0]"),
        ("pairs", [[1, 2, 3]], "s.pairs[0]"),
        ("pairs", [[1, "2"]], "s.pairs[0][1]"),
        ("kind", "NOTHING", "s.kind"),
        ("kind", 1, "s.kind"),
        ("labels", {"a": 1}, "s.labels.a"),
        ("labels", [], "s.labels"),
        ("type", "Other", "s.type"),
        ("more", 1, "s"),
    ],
)
def test_what_is_no_such_value_is_refused_by_its_place(field: str, value: object, path: str) -> None:
    """And never taken for another."""
    with pytest.raises(FieldError) as caught:
        from_json(Sample, to_json(SAMPLE) | {field: value}, "s")
    assert caught.value.field == path


def test_a_field_that_is_missing_and_a_kind_that_cannot_be() -> None:
    """Named as well."""
    less = {name: value for name, value in to_json(SAMPLE).items() if name != "flag"}
    with pytest.raises(FieldError, match="a field flag"):
        from_json(Sample, less, "s")
    blocked = {"type": "OutcomeImage", "seq": 1, "kind": {"type": "BlockedOutcome", "expected_seq": 1, "exit": ""}}
    with pytest.raises(FieldError, match=r"o\.kind\.type"):
        from_json(OutcomeImage, blocked, "o")


def test_no_message_shows_what_registers_hold() -> None:
    """A long text is cut."""
    with pytest.raises(FieldError) as caught:
        from_json(Sample, to_json(SAMPLE) | {"number": "ab" * 5000}, "s")
    assert len(str(caught.value)) < 200


# -- whole images ------------------------------------------------------------------------------------------------------


def an_image() -> VmImage:
    """Of a VM of two vCPUs, one of which is parked."""
    node = Node("one")
    node.do(CreateVm(vm_id="a"))
    node.do(RequestPermission(vm="vms/a", feature=18, guest=True))
    for nr in range(2):
        node.do(CreateVcpu(vm="vms/a", index=nr))
    node.event("vms/a/vcpus/0", Hlt())
    node.do(ArmFault(point="fpstate.realloc.alloc", action=FailErrno(12), attributes=FaultAttributes(times=1)))
    node.event("vms/a/vcpus/1", Xsetbv(0, 0x602E7))
    node.begin("vms/a", "two")
    raw = node.export("vms/a")
    assert raw is not None
    return unpack_image(raw)


def test_an_image_is_what_was_packed() -> None:
    """The same image has the same bytes, and they are small."""
    image = an_image()
    raw = pack_image(image)
    assert unpack_image(raw) == image
    assert pack_image(unpack_image(raw)) == raw
    assert len(raw) < 4000 < IMAGE_BYTES_MAX
    check_image(image)


def _vcpu(nr: int, **fields: object) -> dict[str, object]:
    image = an_image()
    vcpus = list(image.vcpus)
    vcpus[nr] = replace(vcpus[nr], **fields)  # type: ignore[arg-type]
    return {"vcpus": tuple(vcpus)}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        pytest.param(lambda: {"vcpus": ()}, "image.vcpus", id="no vCPU"),
        pytest.param(lambda: {"vcpus": an_image().vcpus[:1] * 2}, "image.vcpus", id="an index twice"),
        pytest.param(lambda: {"vcpus": an_image().vcpus[:1]}, "image.requirements.vcpu_count", id="too few vCPUs"),
        pytest.param(lambda: {"cpuid": 9}, "image.cpuid", id="a CPUID that is not there"),
        pytest.param(lambda: _vcpu(0, cpuid=9), "image.vcpus[0].cpuid", id="a vCPU's that is not there"),
        pytest.param(lambda: _vcpu(1, exit=None), "image.vcpus[1].exit", id="parked on nothing"),
        pytest.param(lambda: _vcpu(1, outcomes=()), "image.vcpus[1].exit", id="an exit of no event"),
        pytest.param(lambda: _vcpu(0, next_seq=1), "image.vcpus[0].outcomes", id="outcomes of numbers to come"),
        pytest.param(lambda: _vcpu(0, outcomes=an_image().vcpus[0].outcomes * 2), "image.vcpus[0].outcomes", id="two"),
    ],
)
def test_an_image_that_contradicts_itself(fields: object, path: str) -> None:
    """Refused by the field."""
    with pytest.raises(FieldError) as caught:
        check_image(replace(an_image(), **fields()))  # type: ignore[operator]
    assert caught.value.field == path


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"fpstated snapshot 1\n", id="a snapshot of a host"),
        pytest.param(MAGIC, id="the first line alone"),
        pytest.param(MAGIC + b"{}", id="not compressed"),
        pytest.param(MAGIC + zlib.compress(b"{}"), id="an empty object"),
        pytest.param(MAGIC + zlib.compress(b"[" * 100_000), id="a deep list"),
        pytest.param(MAGIC + zlib.compress(b"\xff"), id="not a text"),
        pytest.param(MAGIC + zlib.compress(b"null") + b"x", id="something behind it"),
    ],
)
def test_bytes_that_are_no_image(raw: bytes) -> None:
    """FieldError, whatever they are."""
    with pytest.raises(FieldError, match=r"^image"):
        unpack_image(raw)


def test_an_image_that_unfolds_to_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small image of many zeros is given up at the limit, not in the middle of memory."""
    monkeypatch.setattr("host_agent.image_form.UNFOLDED_BYTES_MAX", 1000)
    with pytest.raises(FieldError, match="at most 1000 bytes"):
        unpack_image(pack_image(an_image()))
