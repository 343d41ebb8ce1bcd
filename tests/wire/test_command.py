"""``fpstated proxy`` as somebody types it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.wire.echo import serving
from tests.wire.plans import plan

#: One that the command knows: of a method that nobody has told it of, a request is two messages.
GET_VM = "/fpstate.v1.VmService/GetVm"
COMMAND = (sys.executable, "-m", "fpstated", "proxy")


def call(channel: grpc.Channel, request: bytes) -> str:
    """The answer, or the name of the status."""
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GET_VM)
    try:
        return unary(request, timeout=20).decode()
    except grpc.RpcError as error:
        return str(error.code().name)


def test_a_plan_breaks_a_call_and_is_healed(tmp_path: Path) -> None:
    """The second request is damaged; a held one goes on with SIGUSR1; the end says what went through."""
    from google.protobuf.json_format import MessageToJson

    text = plan(
        "point: link.message, scope: {entity: 'vms/a->host'}, attributes: {fail-nth: 2}, action: {corrupt: {}}",
        "point: link.message, scope: {entity: 'vms/a->host'}, attributes: {fail-nth: 3}, action: {hold: {}}",
    )
    (tmp_path / "plan.json").write_text(MessageToJson(text))
    with serving(f"unix:{tmp_path}/echo") as (_, address):
        options = ["--listen", "127.0.0.1:0", "--target", address, "--plan", f"{tmp_path}/plan.json"]
        process = subprocess.Popen([*COMMAND, *options, "--link", "vms/a->host"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            found = re.fullmatch(r"listening at (127\.0\.0\.1:\d+), forwarding to unix:.*/echo\n", first)
            assert found
            with grpc.insecure_channel(found[1], options=[("grpc.enable_retries", 0)]) as channel:
                assert [call(channel, b"1"), call(channel, b"2")] == ["1", "UNAVAILABLE"]
                unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GET_VM)
                held = unary.future(b"3", timeout=20)
                said = [process.stdout.readline() for _ in range(2)]
                process.send_signal(signal.SIGUSR1)
                assert held.result() == b"3"
            process.send_signal(signal.SIGTERM)
            said += process.stdout.readlines()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    hit = "of link.message at vms/a->host"
    assert said[:2] == [f"f1: hit 2 {hit}: Corrupt(bits=1)\n", f"f2: hit 3 {hit}: Hold(for_ns=0)\n"]
    assert re.fullmatch(r"vms/a->host: \d+ bytes, 3 messages, 2 faults\n", said[2])
    assert re.fullmatch(r"host->vms/a: \d+ bytes, \d+ messages, 0 faults\n", said[3])
    assert said[4] == "1 connections, 0 refused, 0 unread\n"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--target", "nowhere"), "target: expected unix:PATH or HOST:PORT, got 'nowhere'"),
        (("--link", "a"), "--link: expected FROM->TO, got 'a'"),
        (("--plan", "growth-fails-once", "--phase", "dusk"), "--phase: expected one of warm, chaos, heal, settle"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(options: tuple[str, ...], complaint: str) -> None:
    """Naming what was expected."""
    given = [*COMMAND, "--listen", "127.0.0.1:0", *options]
    if "--target" not in options:
        given += ["--target", "unix:/tmp/x"]
    run = subprocess.run(given, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith(f"fpstated proxy: {complaint}")
