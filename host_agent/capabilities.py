"""What this release can do, by the names that GetHostInfo lists and OpenSession may require."""

from __future__ import annotations

from typing import Final

from host_agent.state import HostConfig

#: Always there. The names are documented in protos/fpstate/v1/host.proto.
_ALWAYS: Final = (
    "audit",
    "check-compat",
    "cpuid-table",
    "drain",
    "exits",
    "hide-feature",
    "migration",
    "packed-events",
    "reclaim",
    "sessions",
    "set-cpuid",
    "tasks",
    "vcpu-state",
    "watch",
)


def capabilities(config: HostConfig) -> tuple[str, ...]:
    """Return the names, sorted; ``durable`` and ``faults`` only on a host started so."""
    optional = {"durable": config.durable, "faults": config.faults}
    return tuple(sorted((*_ALWAYS, *(name for name, there in optional.items() if there))))
