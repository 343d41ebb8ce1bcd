"""The broken versions by name, and how one is put in place of what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from fault_lab.broken import decisions, swaps
from fpu_core import swap
from host_agent import machine
from host_agent.commands import ResolveExit

Plant = Callable[[], None]


def _swap_out(wrong: Callable[..., Any]) -> Plant:
    return lambda: setattr(swap, "_swap_out_and_grow", wrong)


def _any_generation() -> None:
    machine.HANDLERS[ResolveExit] = decisions.any_generation(cast("decisions.Resolve", machine.HANDLERS[ResolveExit]))


#: Name -> what is wrong, in a line, and what puts it there for the rest of the process.
VERSIONS: Final[dict[str, tuple[str, Plant]]] = {
    "xfd-first": ("XFD is committed before the room is there", _swap_out(swaps.xfd_first)),
    "request-kept": ("a failed request is not cleared", _swap_out(swaps.request_kept)),
    "freed-first": ("the old container is freed before the new one is there", _swap_out(swaps.freed_first)),
    "not-saved": ("the guest is not saved into the new container", _swap_out(swaps.not_saved)),
    "any-generation": ("a late decision is applied to a newer generation", _any_generation),
}


class UnknownVersionError(ValueError):
    """There is no such broken version."""


_planted: list[str] = []


def plant(name: str) -> None:
    """Break this process, until it ends. Raises ``UnknownVersionError``."""
    if name not in VERSIONS:
        raise UnknownVersionError(f"--broken: expected one of {', '.join(VERSIONS)}, got {name!r}")
    _planted.append(name)
    VERSIONS[name][1]()


def planted() -> str:
    """What is broken in this process; empty for nothing."""
    return "+".join(_planted)
