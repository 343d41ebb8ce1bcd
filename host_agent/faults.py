"""Arming and disarming fault points: how a host is broken on purpose. Off unless it was started with them."""

from __future__ import annotations

import errno

from fault_lab.injection.table import ArmedFault
from fpu_core.alloc import FAULT_POINTS
from host_agent.commands import ArmFault, DisarmFault
from host_agent.errors import Reason, Refused, invalid
from host_agent.state import HostState


def arm(state: HostState, command: ArmFault) -> ArmedFault:
    """Arm one point. The allocation points have the error class of vzalloc(): ENOMEM and no other."""
    _check_enabled(state)
    if command.point not in FAULT_POINTS:
        known = ", ".join(FAULT_POINTS)
        raise Refused(
            Reason.FAULT_POINT_UNKNOWN,
            f"there is no fault point {command.point!r}: one of {known}",
            field="fault.point",
            point=command.point,
            known=known,
        )
    if command.errno != errno.ENOMEM:
        raise invalid("fault.action.errno", f"{errno.ENOMEM}, ENOMEM: all an allocation returns", command.errno)
    fault = ArmedFault(
        name=f"faults/{state.next_id('f')}",
        point=command.point,
        errno=command.errno,
        vm=command.vm,
        vcpu=command.vcpu,
        owner=command.owner,
        attributes=command.attributes,
    )
    state.faults.arm(fault)
    return fault


def disarm(state: HostState, command: DisarmFault) -> None:
    """Take one fault out, or all."""
    _check_enabled(state)
    if not command.name:
        state.faults.armed.clear()
    elif state.faults.disarm(command.name) is None:
        raise Refused(Reason.FAULT_NOT_FOUND, f"there is no fault {command.name!r}", fault=command.name)


def _check_enabled(state: HostState) -> None:
    if not state.config.faults:
        raise Refused(Reason.FAULTS_NOT_ENABLED, "this host was not started with fault injection (--faults)")
