"""Where a host listens, and is looked for, unless somebody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def default_address() -> str:
    """Where a host listens unless told: a socket that only its user can reach."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) / "fpstated" if runtime else Path(f"/tmp/fpstated-{os.getuid()}")  # noqa: S108 -- mode 0700
    return f"unix:{folder / 'host.sock'}"
