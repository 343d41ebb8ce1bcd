"""The signal that takes a vCPU thread out of KVM_RUN."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from guest_agent.kvm.error import KvmError

#: A real-time signal, so that nobody's SIGUSR1 is taken. What it does to a thread is to end KVM_RUN with EINTR.
KICK_SIGNAL = int(signal.SIGRTMIN) + 5


def install_kick_signal() -> None:
    """Install the handler of KICK_SIGNAL, once per process.

    A signal that is ignored does not interrupt KVM_RUN, so a real handler is needed, and Python installs handlers
    from the main thread alone. `KvmGuest` calls this itself; a program whose guests are made by other threads calls
    it once from its main thread.

    Raises:
        KvmError: not the main thread, and nobody has installed it before.
    """
    if signal.getsignal(KICK_SIGNAL) is _ignore:
        return
    if threading.current_thread() is not threading.main_thread():
        raise KvmError("call install_kick_signal() from the main thread first", exit_reason="kick")
    signal.signal(KICK_SIGNAL, _ignore)


def send_kick(thread_id: int) -> None:
    """Interrupt the thread with this `threading.get_ident()`; it must be running."""
    signal.pthread_kill(thread_id, KICK_SIGNAL)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: being delivered is all the signal is for."""
