"""``python -m fault_lab.live.child MODULE ARGUMENT...``: run a module in a process that ends with whoever started it.

SIGKILL leaves a runner no time to end what it has started: the kernel does it. Source: prctl(2), PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
#: Who started this process, as it says itself: by the time we look, it may be gone.
PARENT: Final = "FPSTATED_LIVE_PARENT"


def end_with_parent() -> None:
    """Be killed when the thread that started this process ends; now, where it has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(os.environ[PARENT]):
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Become the module."""
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
