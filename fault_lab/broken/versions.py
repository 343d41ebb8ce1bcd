"""The broken versions by name, and how one is put in place of what is right, and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from fault_lab.broken import decisions, exits, swaps
from fpu_core import swap
from host_agent import decisions as right_decisions
from host_agent import machine
from host_agent.commands import ResolveExit
from host_agent.exits import DecisionKind
from host_agent.kvm.policy import on_swap


@dataclass(frozen=True, slots=True)
class Version:
    """What is wrong, in a line; the names of a module, or a table, in which ``key`` is right; what makes it wrong."""

    what: str
    where: dict[Any, Any]
    key: object
    wrong: Callable[[Any], object]


_SWAP: Final = (vars(swap), "_swap_out_and_grow")
VERSIONS: Final[dict[str, Version]] = {
    "xfd-first": Version("XFD is committed before the room for it is there", *_SWAP, swaps.xfd_first),
    "request-kept": Version("a growth that failed leaves its request pending", *_SWAP, swaps.request_kept),
    "freed-first": Version("the old container is freed before the new one is there", *_SWAP, swaps.freed_first),
    "not-saved": Version("the guest is not saved into the new container", *_SWAP, swaps.not_saved),
    "failure-swallowed": Version(
        "a failed allocation is nobody's exit: the vCPU enters again", vars(on_swap), "vcpu_leave", exits.swallowed
    ),
    "retried-once": Version(
        "the second RETRY of a failure is never carried out",
        right_decisions._EFFECTS,  # noqa: SLF001 -- it is what is broken
        DecisionKind.RETRY,
        decisions.retried_once,
    ),
    "any-generation": Version(
        "a late decision is applied to what the exit has become",
        machine.HANDLERS,
        ResolveExit,
        decisions.any_generation,
    ),
}


class UnknownVersionError(ValueError):
    """There is no such broken version."""


#: What is planted in this process now.
_names: Final[list[str]] = []


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Break this process by name while the context lasts; by "" not at all. Raises ``UnknownVersionError``."""
    if not name:
        yield
        return
    version = known(name)
    right = version.where[version.key]
    version.where[version.key] = version.wrong(right)
    _names.append(name)
    try:
        yield
    finally:
        _names.remove(name)
        version.where[version.key] = right


def known(name: str) -> Version:
    """Return the version of a name. Raises ``UnknownVersionError``."""
    if name not in VERSIONS:
        raise UnknownVersionError(f"expected one of {', '.join(VERSIONS)}, got {name!r}")
    return VERSIONS[name]


def what_is_broken() -> str:
    """The names of what is broken in this process; empty for nothing."""
    return "+".join(_names)


def version_lines() -> Iterator[str]:
    """A line a version, for people."""
    for name, version in VERSIONS.items():
        yield f"  {name:19}{version.what}"
