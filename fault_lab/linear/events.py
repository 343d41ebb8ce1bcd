"""What an event may come to, and what it leaves: by KVM's rules for the instruction, without its VM around it.

Each function returns every (outcome, state) that there may be. Sources: as in ``host_agent.kvm.intercept``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fault_lab.linear.state import DYNAMIC, Heard, Parked, State, missing
from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR
from host_agent.kvm.cpuid import X86_CR4_OSXSAVE
from host_agent.kvm.xcr0 import xcr0_error

Found = list[tuple[Heard, State]]


def _xsetbv(supported: int | None, state: State, operands: dict[str, int], heard: Heard | None) -> Found:
    if state.osxsave is False:
        return [(Heard("#UD"), state)]
    if operands.get("cpl"):
        return [(Heard("#GP"), state)]
    if supported is None:
        return [(Heard("#GP"), state), *_write(state, operands["value"], state.xfd, heard)]
    index = operands.get("index", 0) & 0xFFFF_FFFF
    if xcr0_error(index, operands["value"], supported) is not None:
        return [(Heard("#GP"), state)]
    return _write(state, operands["value"], state.xfd, heard)


def _wrmsr(supported: int | None, state: State, operands: dict[str, int], heard: Heard | None) -> Found:
    msr, value = operands["msr"], operands["value"]
    refused = [(Heard("#GP"), state)]
    if msr not in (MSR_IA32_XFD, MSR_IA32_XFD_ERR):
        return [(Heard("done"), state), *refused]
    allowed = DYNAMIC if supported is None else supported & DYNAMIC
    if value & ~allowed:
        return refused
    if msr == MSR_IA32_XFD_ERR:
        found = [(Heard("done"), state._replace(xfd_err=value))]
    else:
        found = _write(state, state.xcr0, value, heard)
    # Without dynamic features a CPUID may have XFD or not.
    return found if supported is not None and allowed else [*found, *refused]


def _rdmsr(supported: int | None, state: State, operands: dict[str, int], heard: Heard | None) -> Found:
    name = {MSR_IA32_XFD: "xfd", MSR_IA32_XFD_ERR: "xfd_err"}.get(operands["msr"])
    value = getattr(state, name) if name is not None else heard.value if heard is not None else None
    no_xfd = not supported or not supported & DYNAMIC or name is None
    return [(Heard("done", value), state), *([(Heard("#GP"), state)] if no_xfd else [])]


def _write(state: State, xcr0: int, xfd: int, heard: Heard | None) -> Found:
    """A legal write: it takes effect, with growth where there is no room; or its vCPU is parked in front of it."""
    plain = state._replace(xcr0=xcr0, xfd=xfd)
    found = [] if missing(state, xcr0, xfd) else [(Heard("done"), plain)]
    if xcr0 & ~xfd & DYNAMIC and (not state.xfeatures or not found):
        size = heard.grown if heard is not None and heard.grown else 0
        wide = state.xfeatures and state.xfeatures | DYNAMIC
        found.append((Heard("done", None, size or -1), plain._replace(xfeatures=wide, size=size)))
        generation = (heard.value if heard is not None else None) or 1
        found.append((Heard("pending", generation), state._replace(parked=Parked(xcr0, xfd, generation))))
    return found


def _xgetbv(_supported: int | None, state: State, operands: dict[str, int], heard: Heard | None) -> Found:
    if state.osxsave is False:
        return [(Heard("#UD"), state)]
    if operands.get("index", 0):
        return [(Heard("done", heard.value if heard is not None else None), state), (Heard("#GP"), state)]
    return [(Heard("done", state.xcr0), state)]


def _nm(_supported: int | None, state: State, operands: dict[str, int], _heard: Heard | None) -> Found:
    by_xfd = state.xfd and not operands.get("cr0_ts")
    after = state._replace(xfd_err=state.xfd & state.xcr0 & DYNAMIC) if by_xfd else state
    return [(Heard("#NM", after.xfd_err), after)]


def _write_cr4(_supported: int | None, state: State, operands: dict[str, int], _heard: Heard | None) -> Found:
    written = state._replace(osxsave=bool(operands["value"] & X86_CR4_OSXSAVE))
    return [(Heard("done"), written), (Heard("#GP"), state)]


def _xfd_sync(_supported: int | None, state: State, operands: dict[str, int], _heard: Heard | None) -> Found:
    return [(Heard("done"), state._replace(xfd=operands["xfd"]))]


def _registers(_supported: int | None, state: State, operands: dict[str, int], _heard: Heard | None) -> Found:
    """An instruction that uses a component. Its bytes are not looked at; XFD is: what it disables cannot be used."""
    feature = operands.get("feature")
    disabled = state.xfd & state.xcr0 & DYNAMIC
    used = disabled if feature is None else disabled & 1 << feature
    found = [(Heard("#UD"), state), (Heard("#GP"), state)]
    if feature is None or not used:
        found.append((Heard("done"), state))
    if used:
        found.append((Heard("#NM", used), state._replace(xfd_err=used)))
    return found


#: Events that are not here leave the vCPU's registers as they are: HLT, preemption, entering and leaving.
EVENTS: Final[dict[str, Callable[[int | None, State, dict[str, int], Heard | None], Found]]] = {
    "Xsetbv": _xsetbv,
    "Wrmsr": _wrmsr,
    "Rdmsr": _rdmsr,
    "Xgetbv": _xgetbv,
    "Nm": _nm,
    "WriteCr4": _write_cr4,
    "XfdSync": _xfd_sync,
    **dict.fromkeys(("RegisterWrite", "RegisterRead", "Tile", "Xsave"), _registers),
}
