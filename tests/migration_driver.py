"""A driver as a process, to be killed: says each step before it takes it, and stops for good before the one it is told.

python -m tests.migration_driver SOURCE TARGET VM [STEP]
"""

from __future__ import annotations

import signal
import sys

from fpstated.client import MigrateStep, migrate


def main(source: str, target: str, vm: str, stop_before: str = "") -> None:
    """Move the VM, or wait to be killed."""

    def on_step(step: MigrateStep) -> None:
        print(step.name, flush=True)
        if step.name == stop_before:
            signal.pause()

    done = migrate(source, target, vm, on_step=on_step)
    print(f"DONE {done.ownership_epoch}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
