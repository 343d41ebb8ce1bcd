"""What a state ioctl says, and the growth that userspace's own writes may need before they are judged.

A VMM restores a vCPU in an order of its own, and some orders enable a feature before anything has made room for it. So
a write from userspace grows the container at once: in the ioctl, before anything is committed, and never by an exit. An
ioctl that cannot grow fails with its errno and has changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpu_core.realloc import Reallocated, ReallocFailed, realloc_guest_image
from host_agent.kvm.vcpu import Vcpu


@dataclass(frozen=True, slots=True)
class StateSet:
    """The ioctl did all that it was asked. ``reallocated``: the container grew for it."""

    reallocated: Reallocated | None = None


def grow_for_restore(vcpu: Vcpu, missing: int) -> Reallocated | ReallocFailed | None:
    """Make room for the dynamic features ``missing`` in the container of a vCPU outside the guest; None for none.

    EPERM without permission, ENOMEM without memory: the container is as it was.
    """
    return realloc_guest_image(vcpu.vm.leader, vcpu.guest, missing) if missing else None
