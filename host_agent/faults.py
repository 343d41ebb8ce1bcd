"""Faults: how a host is broken on purpose. Off unless it was started with them.

The points inside the machine ask ``HostState.fault_errno``; those outside of it come in as ``HitFault``. A lease takes
a fault out when whoever armed it has died.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fault_lab.injection.action import Action
from fault_lab.injection.draw import PPM
from fault_lab.injection.points import FAULT_POINTS, HOST_POINTS, Seat
from fault_lab.injection.table import ArmedFault
from fpu_core.errors import Errno
from host_agent.commands import ArmFault, DisarmFault, HitFault, RenewFaults, ResetFaults
from host_agent.effects import FaultChanged
from host_agent.errors import Reason, Refused, invalid, kvm_errno
from host_agent.state import HostState

#: Names that begin so are the host's: one that it does not have is a mistake, not another program's.
_OURS = ("fpstate.", "kvm.", "rpc.server.")
_MS = 1_000_000
_LEASE_NS_MAX = 24 * 3600 * 1_000 * _MS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a point outside of the machine is to do: nothing where no fault fired. A delay is drawn."""

    fault: str = ""
    action: Action | None = None


def arm(state: HostState, command: ArmFault) -> ArmedFault:
    """Arm one point, with an action that it takes."""
    _check_enabled(state)
    _check_point(command)
    if not 0 <= command.gate_ppm <= PPM:
        raise invalid("fault.gate_ppm", f"0..{PPM}", command.gate_ppm)
    if command.lease_ns and not _MS <= command.lease_ns <= _LEASE_NS_MAX:
        raise invalid("fault.lease", "1 ms to 24 h", f"{command.lease_ns} ns")
    fault = ArmedFault(
        name=f"faults/{state.next_id('f')}",
        point=command.point,
        action=command.action,
        owner=command.owner,
        selector=command.selector,
        attributes=command.attributes,
        window=command.window,
        gate_ppm=command.gate_ppm,
        armed_ns=state.now_ns,
        armed_event=state.revision,
        lease_ns=command.lease_ns,
        expires_ns=state.now_ns + command.lease_ns if command.lease_ns else None,
    )
    state.faults.arm(fault)
    state.deadlines.add(fault)
    state.effects.append(FaultChanged("ARMED", fault))
    return fault


def _check_point(command: ArmFault) -> None:
    point = FAULT_POINTS.get(command.point)
    if command.point.startswith(_OURS) and (point is None or point.seat is not Seat.HOST):
        known = ", ".join(HOST_POINTS)
        raise Refused(
            Reason.FAULT_POINT_UNKNOWN,
            f"there is no fault point {command.point!r}: one of {known}",
            field="fault.point",
            point=command.point,
            known=known,
        )
    expected = point.objection(command.action) if point is not None else ""
    if expected:
        raise invalid("fault.action", f"what {command.point} takes: {expected}", command.action)


def disarm(state: HostState, command: DisarmFault) -> ArmedFault:
    """Take one fault out; returns it as it was last."""
    _check_enabled(state)
    fault = state.faults.disarm(command.name)
    if fault is None:
        raise Refused(Reason.FAULT_NOT_FOUND, f"there is no fault {command.name!r}", fault=command.name)
    state.effects.append(FaultChanged("DISARMED", fault))
    return fault


def reset(state: HostState, command: ResetFaults) -> tuple[ArmedFault, ...]:
    """Take out every fault of an owner, or all; returns them as they were last."""
    _check_enabled(state)
    faults = tuple(state.faults.owned(command.owner))
    for fault in faults:
        state.faults.disarm(fault.name)
        state.effects.append(FaultChanged("DISARMED", fault))
    return faults


def renew(state: HostState, command: RenewFaults) -> int:
    """Start the leases of an owner's faults anew; returns how many that are."""
    _check_enabled(state)
    leased = [fault for fault in state.faults.armed.values() if fault.owner == command.owner and fault.lease_ns]
    for fault in leased:
        fault.expires_ns = state.now_ns + fault.lease_ns
    return len(leased)


def expire(state: HostState) -> None:
    """Take out what nobody has renewed."""
    for fault in list(state.faults.armed.values()):
        if fault.expires_ns is not None and fault.expires_ns <= state.now_ns:
            state.faults.disarm(fault.name)
            state.effects.append(FaultChanged("EXPIRED", fault))


def hit(state: HostState, command: HitFault) -> Verdict:
    """A point outside of the machine was reached."""
    _check_enabled(state)
    where = replace(command.hit, now_ns=state.now_ns, event=state.revision)
    fired = state.fault_hit(where, owner=command.owner)
    return Verdict() if fired is None else Verdict(fired.name, fired.drawn_action(where))


def check_ioctl(state: HostState, point: str, ioctl: str) -> None:
    """A fault point in front of an ioctl: refuse it with the errno that fires, before anything has changed."""
    errno = state.fault_errno(point)
    if errno:
        raise kvm_errno(Errno(errno), ioctl)


def _check_enabled(state: HostState) -> None:
    if not state.config.faults:
        raise Refused(Reason.FAULTS_NOT_ENABLED, "this host was not started with fault injection (--faults)")
