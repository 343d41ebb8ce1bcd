"""What a state ioctl says where it sets state.

A VMM restores a vCPU in an order of its own, and some orders enable a feature before anything has made room for it. So
a write from userspace grows the container at once: in the ioctl, before anything is committed, and never by an exit. An
ioctl that cannot grow fails with its errno and has changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpu_core.realloc import Reallocated


@dataclass(frozen=True, slots=True)
class StateSet:
    """The ioctl did all that it was asked. ``reallocated``: the container grew for it."""

    reallocated: Reallocated | None = None
