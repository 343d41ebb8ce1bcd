"""The state of a vCPU as userspace gets and sets it: XSAVE, XCRs, MSRs. KVM decides; here names and refusals are added.

Both need the vCPU outside the guest. Looking is fine on one that is parked; setting is not, since its instruction has
not happened yet and a decision about it is due.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from fpu_core.errors import Errno
from fpu_core.realloc import Reallocated
from host_agent.commands import SetMsrs, SetXcrs, SetXsave
from host_agent.errors import Reason, Refused, kvm_errno
from host_agent.events import Growth
from host_agent.faults import check_ioctl
from host_agent.kvm import msrs_ioctl, xcrs_ioctl, xsave_ioctl
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.msrs_ioctl import MsrEntry
from host_agent.kvm.vcpu import Vcpu
from host_agent.kvm.xcrs_ioctl import Xcr
from host_agent.state import HostState, VcpuSide

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MsrsReply:
    """How many entries were written, and how the container grew for them."""

    processed: int
    reallocated: Growth | None = None


def get_xsave(state: HostState, name: str) -> bytes:
    """KVM_GET_XSAVE: 4,096 bytes, or EINVAL once the state is larger."""
    return _done(xsave_ioctl.get_xsave(_outside(state, name)), "KVM_GET_XSAVE")


def get_xsave2(state: HostState, name: str) -> bytes:
    """KVM_GET_XSAVE2: the whole state in the user format."""
    return _done(xsave_ioctl.get_xsave2(_outside(state, name)), "KVM_GET_XSAVE2")


def get_xcrs(state: HostState, name: str) -> list[Xcr]:
    """KVM_GET_XCRS."""
    return _done(xcrs_ioctl.get_xcrs(_outside(state, name)), "KVM_GET_XCRS")


def get_msrs(state: HostState, name: str, indices: tuple[int, ...]) -> list[MsrEntry]:
    """KVM_GET_MSRS: as many entries as could be read."""
    return _done(msrs_ioctl.get_msrs(_outside(state, name), indices), "KVM_GET_MSRS")


def set_xsave(state: HostState, command: SetXsave) -> Growth | None:
    """KVM_SET_XSAVE; says how the container grew, if it did."""
    vcpu = _settable(state, command.vcpu)
    check_ioctl(state, "kvm.set_xsave.copy", "KVM_SET_XSAVE")
    done = _done(xsave_ioctl.set_xsave(vcpu, command.xsave), "KVM_SET_XSAVE")
    return _growth(vcpu, done.reallocated)


def set_xcrs(state: HostState, command: SetXcrs) -> Growth | None:
    """KVM_SET_XCRS; says how the container grew, if it did."""
    vcpu = _settable(state, command.vcpu)
    check_ioctl(state, "kvm.set_xcrs.copy", "KVM_SET_XCRS")
    xcrs = [Xcr(*entry) for entry in command.xcrs]
    return _growth(vcpu, _done(xcrs_ioctl.set_xcrs(vcpu, xcrs, command.flags), "KVM_SET_XCRS").reallocated)


def set_msrs(state: HostState, command: SetMsrs) -> MsrsReply:
    """KVM_SET_MSRS: a refused entry ends the run and is no error; the count says where."""
    vcpu = _settable(state, command.vcpu)
    check_ioctl(state, "kvm.set_msrs.copy", "KVM_SET_MSRS")
    done = _done(msrs_ioctl.set_msrs(vcpu, [MsrEntry(*entry) for entry in command.entries]), "KVM_SET_MSRS")
    return MsrsReply(done.processed, _growth(vcpu, done.reallocated))


def _done(result: T | Errno, ioctl: str) -> T:
    """What the ioctl says, or its errno as a refusal."""
    if isinstance(result, Errno):
        raise kvm_errno(result, ioctl)
    return result


def _growth(vcpu: Vcpu, grown: Reallocated | None) -> Growth | None:
    return None if grown is None else Growth(grown.old_size_bytes, grown.new_size_bytes, vcpu.fpstate.xfeatures)


def _outside(state: HostState, name: str) -> Vcpu:
    """The vCPU, if its image is the truth: KVM's ioctls would wait for KVM_RUN to end, we say so."""
    vcpu = state.vcpu(name)
    if vcpu.state is VcpuState.ENTERED:
        text = f"{name!r} is in the guest: its state can be had once it has left"
        raise Refused(Reason.VCPU_ALREADY_ENTERED, text, vcpu=name)
    return vcpu


def _settable(state: HostState, name: str) -> Vcpu:
    """The vCPU, if nothing stands against changing its state."""
    vcpu = _outside(state, name)
    match vcpu.state:
        case VcpuState.PARKED | VcpuState.PAUSED:
            side = vcpu.agent
            exit_name = side.exit.name if isinstance(side, VcpuSide) and side.exit is not None else ""
            text = f"{name!r} is parked on {exit_name!r}: its state can be set once that is decided"
            raise Refused(Reason.VCPU_PARKED, text, vcpu=name, exit=exit_name)
        case VcpuState.KILLED:
            raise Refused(Reason.VCPU_KILLED, f"{name!r} was killed", vcpu=name)
        case VcpuState.BROKEN:
            raise Refused(Reason.VCPU_BROKEN, f"{name!r} met a bug of the host and was stopped", vcpu=name)
        case _:
            state.act_for(vcpu.vm.account.name, name)
            return vcpu
