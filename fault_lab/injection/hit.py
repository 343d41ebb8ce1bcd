"""A hit: a fault point was reached. And the selectors that say whose hits a fault is about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One time that ``point`` was reached, by ``entity``: a vCPU, a VM, a node, a link ``a->b``, a method.

    ``vm`` and ``vcpu`` are resource names; ``trigger`` is what led there (``XSETBV``, ``CreateVcpu``); ``xfeatures``
    the components it is about; ``trace`` who led there, the innermost first. Time is the world's, in nanoseconds;
    ``event`` counts what has happened in it, a host's revision for instance.
    """

    point: str
    entity: str = ""
    vm: str = ""
    vcpu: str = ""
    trigger: str = ""
    xfeatures: int = 0
    size_bytes: int = 0
    trace: tuple[str, ...] = ()
    #: The kernel's /proc/<pid>/make-it-fail.
    make_it_fail: bool = False
    now_ns: int = 0
    event: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Whose hits: every field that is set must fit. ``*`` in ``entity`` and ``trigger`` stands for any text.

    ``xfeatures``: at least one of these components is asked for. ``among``: the entity is one of these, whole names.
    """

    vm: str = ""
    vcpu: str = ""
    entity: str = ""
    trigger: str = ""
    xfeatures: int = 0
    among: tuple[str, ...] = ()

    def fits(self, hit: Hit) -> bool:
        """Whether the hit is meant."""
        return (
            self.vm in ("", hit.vm)
            and self.vcpu in ("", hit.vcpu)
            and (not self.xfeatures or bool(self.xfeatures & hit.xfeatures))
            and (not self.among or hit.entity in self.among)
            and (not self.entity or matches(self.entity, hit.entity))
            and (not self.trigger or matches(self.trigger, hit.trigger))
        )


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` is ``pattern``, in which each ``*`` stands for any text, none included."""
    return pattern == name or ("*" in pattern and _compiled(pattern).fullmatch(name) is not None)


@lru_cache(maxsize=1 << 10)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When a fault is about: from its arming on, in time and in events; the ends are excluded, None is no end."""

    after_ns: int = 0
    until_ns: int | None = None
    after_events: int = 0
    until_events: int | None = None

    def open(self, ns: int, events: int) -> bool:
        """Whether ``ns`` nanoseconds and ``events`` events after the arming are within."""
        return (
            ns >= self.after_ns
            and events >= self.after_events
            and (self.until_ns is None or ns < self.until_ns)
            and (self.until_events is None or events < self.until_events)
        )

    def later(self, ns: int, events: int) -> Window:
        """The same window, for somebody who begins to count so long, and so many events, later."""
        return Window(
            after_ns=max(0, self.after_ns - ns),
            until_ns=None if self.until_ns is None else max(0, self.until_ns - ns),
            after_events=max(0, self.after_events - events),
            until_events=None if self.until_events is None else max(0, self.until_events - events),
        )
