"""What this release can do, by the names that OpenSession requires and GetHostInfo lists."""

from __future__ import annotations

from typing import Final

CAPABILITIES: Final = (
    "events.v1",
    "events.packed.v1",
    "exits.v1",
    "policy.on_swap",
    "tasks.v1",
)
