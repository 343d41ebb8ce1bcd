"""What processes of a run say about themselves: records as JSON lines on standard output, with the system's clock.

CLOCK_MONOTONIC is the same in every process of a machine, so records of many can be put in order.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

_lock = threading.Lock()


def say(kind: str, /, **fields: object) -> None:
    """Write a record; from any thread."""
    line = json.dumps({"t": time.monotonic_ns(), "type": kind, **fields})
    with _lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def heard(line: str) -> dict[str, Any] | None:
    """Read such a line; None for anything else."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "type" in found and "t" in found else None
