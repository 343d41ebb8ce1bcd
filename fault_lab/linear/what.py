"""The operations on a vCPU, each a value with its answer where somebody has heard it."""

from __future__ import annotations

from typing import NamedTuple

from fault_lab.linear.state import Heard


class Event(NamedTuple):
    """An event of a guest. Without ``heard`` nobody knows what it came to."""

    seq: int
    kind: str
    operands: tuple[tuple[str, int], ...]
    heard: Heard | None


class Wait(NamedTuple):
    """The outcome of an event that was submitted before."""

    seq: int
    heard: Heard


class Decide(NamedTuple):
    """A decision about the exit of event ``seq``. ``left`` is the exit's state after it; None where nobody knows."""

    seq: int
    generation: int
    decision: str
    left: str | None


class Create(NamedTuple):
    """KVM_CREATE_VCPU."""


class Gone(NamedTuple):
    """The vCPU is no more: deleted, or forgotten by a host without a journal."""


class Reset(NamedTuple):
    """RESET, of the vCPU's whole VM."""


class Kill(NamedTuple):
    """The VM is killed by a decision about another vCPU."""


class Shrink(NamedTuple):
    """A RECLAIM about another vCPU may take what this one does not use."""


class Look(NamedTuple):
    """GetVcpu: the state by its name, the events taken, the registers, the container."""

    state: str
    seq: int
    xcr0: int
    xfd: int
    xfd_err: int
    xfeatures: int
    size: int


class LookAt(NamedTuple):
    """GetXcrs, GetMsrs and GetXsave: (name, value) of what was read."""

    read: tuple[tuple[str, int], ...]


class Set(NamedTuple):
    """SetXcrs, SetMsrs and SetXsave, carried out: (name, value) of what was written; the container's new size or 0."""

    written: tuple[tuple[str, int], ...]
    grown: int


What = Event | Wait | Decide | Create | Gone | Reset | Kill | Shrink | Look | LookAt | Set
