"""What can be read of a vCPU, by the host's own functions: GetVcpu, GetXcrs, GetMsrs, GetXsave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fpstate.v1 import vcpu_pb2

from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR
from host_agent.service.translate.vcpu import vcpu_to_proto
from host_agent.state import HostState
from host_agent.vcpu_state import get_msrs, get_xcrs, get_xsave2

#: Where XSTATE_BV is in an XSAVE image. Source: SDM vol. 1, 13.4.2.
_XSTATE_BV: Final = slice(512, 520)


@dataclass(frozen=True, slots=True)
class Read:
    """A vCPU's state is asked for; which, the method says."""

    vcpu: str


@dataclass(frozen=True, slots=True)
class Registers:
    """What was read, (name, value): ``xcr0``, ``xfd`` and ``xfd_err``, or the image's ``xstate_bv``."""

    read: tuple[tuple[str, int], ...]


def _vcpu(state: HostState, vcpu: str) -> vcpu_pb2.Vcpu:
    return vcpu_to_proto(state, state.vcpu(vcpu))


def _xcrs(state: HostState, vcpu: str) -> Registers:
    return Registers(tuple(("xcr0", each.value) for each in get_xcrs(state, vcpu)))


def _msrs(state: HostState, vcpu: str) -> Registers:
    names = {MSR_IA32_XFD: "xfd", MSR_IA32_XFD_ERR: "xfd_err"}
    return Registers(tuple((names[each.index], each.value) for each in get_msrs(state, vcpu, tuple(names))))


def _xsave(state: HostState, vcpu: str) -> Registers:
    return Registers((("xstate_bv", int.from_bytes(get_xsave2(state, vcpu)[_XSTATE_BV], "little")),))


#: By method. Each raises ``Refused`` where the state cannot be had.
READS: Final[dict[str, Callable[[HostState, str], vcpu_pb2.Vcpu | Registers]]] = {
    "GetVcpu": _vcpu,
    "GetXcrs": _xcrs,
    "GetMsrs": _msrs,
    "GetXsave": _xsave,
}
