"""SIGTERM to a host under load: who is told what, in which order, and what becomes of open exits (operations.md)."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.fault.v1 import fault_pb2_grpc
from fpstate.v1 import exit_pb2, exit_pb2_grpc, session_pb2, session_pb2_grpc, vcpu_pb2, vcpu_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guest_agent import request as guest_request
from guest_agent.event import Xsetbv
from guest_agent.host import Host
from guest_agent.wire import batch_to_proto, event_to_proto
from tests.host_process import HostProcess

TIMEOUT_S = 60
GRACE = ("--grace", "3600", "--faults")


class Stream:
    """An Attach stream of the blocking stack, for one vCPU of a session of its own."""

    def __init__(self, channel: grpc.Channel, vcpu: str) -> None:
        self._sent: queue.SimpleQueue[session_pb2.AttachRequest | None] = queue.SimpleQueue()
        stub = session_pb2_grpc.GuestSessionServiceStub(channel)
        opened = stub.OpenSession(session_pb2.OpenSessionRequest(vcpus=[vcpu]), timeout=TIMEOUT_S)
        self.vcpu = vcpu
        hello = session_pb2.AttachHello(session=opened.session, epoch=opened.epoch)
        self._sent.put(session_pb2.AttachRequest(hello=hello))
        self._call: Any = stub.Attach(self._requests(), timeout=TIMEOUT_S)
        assert self.next().HasField("attached")

    def _requests(self) -> Iterator[session_pb2.AttachRequest]:
        while (message := self._sent.get()) is not None:
            yield message

    def next(self) -> session_pb2.AttachResponse:
        """The next message."""
        message: session_pb2.AttachResponse = next(self._call)
        return message

    def enable_tiles(self) -> str:
        """An event that needs a larger container, which fails; the exit's name."""
        batch = batch_to_proto([event_to_proto(self.vcpu, 1, Xsetbv(value=0x602E7))], received_through={})
        self._sent.put(session_pb2.AttachRequest(batch=batch))
        return str(self.next().outcomes.outcomes[0].pending.exit)

    def close(self) -> None:
        """Say no more, and read to the end."""
        self._sent.put(None)
        for _message in self._call:
            pass


def decide(channel: grpc.Channel, name: str) -> exit_pb2.Exit:
    """Decide RETRY as a controller would."""
    stub = exit_pb2_grpc.ExitServiceStub(channel)
    control = stub.AcquireControl(exit_pb2.AcquireControlRequest(controller_name="c"), timeout=TIMEOUT_S)
    request = exit_pb2.ResolveExitRequest(name=name, generation=1, control=control.control, control_epoch=control.epoch)
    request.decision.retry.SetInParent()
    return stub.ResolveExit(request, timeout=TIMEOUT_S).exit


@pytest.mark.timeout(300)
def test_sigterm_with_open_exits(tmp_path: Path) -> None:
    """NOT_SERVING, DRAINING, nothing new; one exit is decided within the grace, the other is there afterwards."""
    with HostProcess(tmp_path, *GRACE) as process:
        with process.channel() as channel, Host(channel) as host, ThreadPoolExecutor(1) as pool:
            faults = fault_pb2_grpc.FaultServiceStub(channel)
            for vm in "ab":
                host.create_vm(vm)
                host.request_permission(f"vms/{vm}")
                host.create_vcpu(f"vms/{vm}")
                faults.ArmFault(guest_request.arm_fault("fpstate.realloc.alloc", errno=12, vm=f"vms/{vm}", times=1))
            first, second = (Stream(channel, f"vms/{vm}/vcpus/0") for vm in "ab")
            names = [stream.enable_tiles() for stream in (first, second)]
            ended = pool.submit(process.stop)
            for stream in (first, second):
                draining = stream.next().draining
                assert (draining.resume_target, draining.grace.seconds) == ("", 3600)
            health: Any = health_pb2_grpc.HealthStub(channel)
            status = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.RpcError, match="draining"):
                Stream(channel, "vms/a/vcpus/0")
            assert decide(channel, names[0]).state == exit_pb2.EXIT_STATE_RESOLVED
            assert first.next().outcomes.outcomes[0].done.reallocated.new_bytes == 10_752
            first.close()
            assert not ended.done(), "a stream that still waits for its outcome has the grace"
            second._call.cancel()
            assert ended.result(TIMEOUT_S) == 0
        process.start()
        with process.channel() as channel:
            vcpu = vcpu_pb2_grpc.VcpuServiceStub(channel).GetVcpu(vcpu_pb2.GetVcpuRequest(name="vms/b/vcpus/0")).vcpu
            assert (vcpu.state, vcpu.exit) == (vcpu_pb2.VCPU_STATE_PARKED, names[1])
            assert decide(channel, names[1]).result == exit_pb2.EXIT_RESULT_COMMITTED
            again = session_pb2_grpc.GuestSessionServiceStub(channel).OpenSession(
                session_pb2.OpenSessionRequest(vcpus=["vms/b/vcpus/0"]), timeout=TIMEOUT_S
            )
            assert again.vcpus[0].next_seq == 2


@pytest.mark.timeout(300)
def test_a_second_sigterm_changes_nothing(tmp_path: Path) -> None:
    """The grace goes on; a host that nobody uses ends at once."""
    with HostProcess(tmp_path, "--grace", "3600") as process:
        process._process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        assert process.stop() == 0
