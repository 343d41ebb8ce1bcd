"""The fuzzer of the wire: a short run against a live host, and that it notices what it is there to notice."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import grpc
import pytest
from fpstate.v1 import event_pb2, session_pb2, vm_pb2
from google.rpc import status_pb2

from tests.fuzz.failure import read_failure, translated
from tests.fuzz.inputs import CANCEL, Corpus, Input, Inputs, every_field
from tests.fuzz.messages import Messages, field_paths
from tests.fuzz.methods import PATHS, full_path
from tests.fuzz.run import Run
from tests.fuzz.sender import _crash, _outcomes
from tests.fuzz.tour import IDENTITIES, stops
from tests.fuzz.vocabulary import Vocabulary

GET_VM = full_path("VmService/GetVm")


@pytest.mark.timeout(600)
def test_a_block_against_a_live_host(tmp_path: Path) -> None:
    """Every method as it should be called, hundreds of inputs as they should not, a drain, a restart: nothing found."""
    run = Run(seed=1, seconds=0, folder=tmp_path, shrink=False)
    run.run()
    assert not run.found, run.found
    assert run.inputs > 500
    answered = {method for method, _code in run.codes}
    assert answered >= {path.rpartition("/")[2] for path in PATHS}


def test_the_tour_calls_every_method() -> None:
    """What is not called as it should be is changed from nothing, and gets no further than the first check."""
    assert {stop.path for stop in stops()} == set(PATHS)


def test_every_field_gets_its_turn() -> None:
    """Of every request, those of messages inside included; a recursive message ends."""
    fields = every_field()
    assert (GET_VM, ("name",)) in fields
    assert (full_path("GuestSessionService/Attach"), ("batch", "events", "events", "xsetbv", "value")) in fields
    assert len(fields) == len(set(fields)) > 400


def test_the_same_seed_makes_the_same_inputs() -> None:
    """As long as the host says the same."""

    def made() -> list[Input]:
        corpus, vocabulary = Corpus(), Vocabulary()
        corpus.add(Input("guest", GET_VM, (vm_pb2.GetVmRequest(name="vms/a").SerializeToString(),)))
        source = Inputs(Random(7), vocabulary, corpus, [], tuple(IDENTITIES))
        return [source.next() for _ in range(200)]

    assert made() == made()
    assert len({each.path for each in made()}) > 20


def test_a_field_that_is_named_is_changed() -> None:
    """Wherever it lies; what is on the way to it is made."""
    messages = Messages(Random(1), Vocabulary())
    for path in field_paths(session_pb2.AttachRequest.DESCRIPTOR):
        request = session_pb2.AttachRequest()
        messages.change(request, path)
        if path[0] == "batch" and len(path) > 1:
            assert request.WhichOneof("body") == "batch"


@pytest.mark.parametrize(
    ("code", "text", "crash"),
    [
        pytest.param(grpc.StatusCode.OK, "", False, id="an answer"),
        pytest.param(grpc.StatusCode.INTERNAL, "a bug of the host", True, id="a bug that was caught"),
        pytest.param(grpc.StatusCode.UNKNOWN, "Unexpected KeyError", True, id="a bug that gRPC has caught"),
        pytest.param(grpc.StatusCode.UNAVAILABLE, "Socket closed", True, id="nobody there"),
        pytest.param(grpc.StatusCode.NOT_FOUND, "no reason", True, id="a refusal without an ErrorInfo"),
        pytest.param(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", True, id="no answer"),
        pytest.param(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", False, id="size"
        ),
    ],
)
def test_what_is_a_crash(code: grpc.StatusCode, text: str, crash: bool) -> None:
    """Whatever is no answer and no refusal in the contract's words."""
    assert bool(_crash(Input("guest", GET_VM, (b"",)), code, text, (), waits=False)) == crash


def test_an_event_rejected_by_a_bug_is_seen() -> None:
    """The call is OK; the bug is in one of its outcomes."""
    bug = event_pb2.EventOutcome(rejected=status_pb2.Status(code=13))
    response = session_pb2.SubmitEventsResponse(outcomes=session_pb2.Outcomes(outcomes=[bug]))
    assert [outcome.rejected.code for outcome in _outcomes(response)] == [13]


def test_a_failure_can_be_repeated_in_another_history(tmp_path: Path) -> None:
    """Its file comes back as it was, and ids of the host's are those of the new history, in the order they came."""
    sent = Input("guest", GET_VM, (b"\x0a\x17sessions/s-0123456789ab", b"\xff"), CANCEL, 2)
    path = tmp_path / "failure.json"
    path.write_text(json.dumps({"ids": ["vm-111111111111", "s-0123456789ab"], "inputs": [sent.to_json()]}))
    ids, inputs = read_failure(path)
    assert inputs == [sent]
    here = Vocabulary()
    here.ids = dict.fromkeys((b"vm-222222222222", b"s-ba9876543210"))
    assert translated(inputs[0], ids, here).messages == (b"\x0a\x17sessions/s-ba9876543210", b"\xff")
