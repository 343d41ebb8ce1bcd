"""The host under test, on a disk that fails on purpose and can forget: for the harness alone.

    python -m tests.crash.host host ...       the arguments of ``fpstated host``; "arm KIND NTH" on standard input

``FPSTATED_TEST_ARM`` arms one fault before anything is opened. With ``FPSTATED_TEST_LIE`` the host acknowledges what
was never synced: that the harness finds that out is how it is tested itself. Nothing of this is in what is installed:
the journal takes the name of a SQLite VFS, and this is the only one who gives it one.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace

from fpstated import cli, host_command
from fpstated.host_config import HostRun
from host_agent.journal import writer
from tests.crash.disk import FaultyDisk

VFS = "crash"
ARM = "FPSTATED_TEST_ARM"
LIE = "FPSTATED_TEST_LIE"
#: Checkpoints are to happen while somebody watches, and a full disk is not to be waited for.
_CHECKPOINT_PAGES = 200
_PROBE_S = 0.05


def _fired(kind: str) -> None:
    os.write(2, f"fired {kind}\n".encode())


def _listen(disk: FaultyDisk) -> None:
    for line in sys.stdin:
        _, kind, nth = line.split()
        disk.arm(kind, int(nth))


def main() -> None:
    """Run the host on that disk."""
    disk = FaultyDisk(VFS, _fired)
    if os.environ.get(ARM):
        kind, nth = os.environ[ARM].split()
        disk.arm(kind, int(nth))
    if os.environ.get(LIE):
        disk.lies = True
    threading.Thread(target=_listen, args=(disk,), daemon=True).start()
    writer.CHECKPOINT_PAGES = _CHECKPOINT_PAGES  # type: ignore[misc]
    run_host = host_command.run_host

    def run_on_it(run: HostRun) -> int:
        assert run.journal is not None
        return run_host(replace(run, journal=replace(run.journal, vfs=VFS, probe_interval_s=_PROBE_S)))

    host_command.run_host = run_on_it
    cli.main()


if __name__ == "__main__":
    main()
