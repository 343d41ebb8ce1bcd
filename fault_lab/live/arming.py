"""Faults of a plan on somebody's own host: armed under a lease, renewed while somebody is there, disarmed, halted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc, plan_pb2

from fault_lab.plan.arm import arm_requests
from fault_lab.wire.duration import NS_PER_S
from guest_agent.channel import connect
from guest_agent.error import host_error

_CALL_S: Final = 10.0


@contextmanager
def _service(address: str) -> Iterator[fault_pb2_grpc.FaultServiceStub]:
    """The FaultService of a host. Raises ``OSError`` where that refuses, is not there, or can be nowhere."""
    try:
        channel = connect(address)
    except ValueError as error:
        raise OSError(str(error)) from error
    try:
        yield fault_pb2_grpc.FaultServiceStub(channel)
    except grpc.RpcError as error:
        raise OSError(f"{address}: {host_error(error)}") from error
    finally:
        channel.close()


def disarmed(address: str, owner: str = "") -> int:
    """Disarm every fault of a host, or those of one owner; returns how many there were. Raises ``OSError``."""
    with _service(address) as faults:
        return len(faults.ResetFaults(fault_pb2.ResetFaultsRequest(owner=owner), timeout=_CALL_S).faults)


def arm(
    plan: plan_pb2.Plan, address: str, seed: int | None, *, phase: str, lease_s: float
) -> tuple[dict[str, str], list[str]]:
    """Arm the faults of a plan at a host's own points; without a lease where that is 0.

    Returns their names at the host by those in the plan, and the names of those that are no host's to arm. Raises
    ``OSError``: what was armed until then is disarmed.
    """
    requests = arm_requests(plan, seed, phase=phase, lease_ns=round(lease_s * NS_PER_S))
    with _service(address) as faults:
        try:
            names = {name: faults.ArmFault(request, timeout=_CALL_S).fault.name for name, request in requests.items()}
        except grpc.RpcError:
            faults.ResetFaults(fault_pb2.ResetFaultsRequest(owner=plan.name), timeout=_CALL_S)
            raise
    return names, [fault.name for fault in plan.faults if fault.name not in names]


def hold(address: str, owner: str, *, lease_s: float, until: threading.Event) -> None:
    """Renew the leases of an owner at a third of their time until the event; then disarm. Raises ``OSError``."""
    with _service(address) as faults:
        try:
            while not until.wait(lease_s / 3):
                faults.RenewFaults(fault_pb2.RenewFaultsRequest(owner=owner), timeout=_CALL_S)
        finally:
            faults.ResetFaults(fault_pb2.ResetFaultsRequest(owner=owner), timeout=_CALL_S)


@contextmanager
def stopped_by_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
