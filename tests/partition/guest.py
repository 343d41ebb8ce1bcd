"""A guest agent whose registers count what it was acknowledged: ``python -m tests.partition.guest``, a line an event.

    count   writes the next number into YMM0's upper half, reads it back, and says it; begins with what is there
    exit    has no permission for tiles and asks for them: each time an exit, a decision, #GP

It ends with status 0 on SIGTERM, 3 where it was fenced off, 1 where a register does not hold what was written.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Final

from fpstated.link.tls import ClientTls
from guest_agent.error import HostError
from guest_agent.event import RegisterRead, RegisterWrite, Xsetbv
from guest_agent.host import Host
from guest_agent.outcome import Done, Injected
from guest_agent.port import VcpuPort
from guest_agent.session import open_session
from guest_agent.setup import create_guest
from guest_agent.wait import Interrupted, SessionLost

_XCR0_AVX: Final = 7
_XCR0_AMX: Final = 0x602E7
_YMM: Final = 2
_WIDTH: Final = 8
_GP: Final = 13
#: Between two events: enough of them to be cut off in the middle of one, and some time for everybody else.
_PAUSE_S: Final = 0.02
_RECONNECT_S: Final = 600.0


def main() -> int:
    """Run until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("vm")
    parser.add_argument("kind", choices=("count", "exit"))
    parser.add_argument("--lease", type=float, required=True)
    parser.add_argument("--certs", type=Path, default=None, help="the folder with guest-VM.pem, its key and ca.pem")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    tls = _tls(asked.certs, asked.vm) if asked.certs else None
    try:
        with Host(asked.address, tls=tls) as host:
            vcpu = create_guest(host, asked.vm, permission=asked.kind == "count")
            with open_session(
                host.channel, vcpus=[vcpu], client_name="partition", lease_s=asked.lease, reconnect_s=_RECONNECT_S
            ) as session:
                port = session.vcpu(vcpu)
                signal.signal(signal.SIGTERM, lambda _number, _frame: _interrupt(port))
                if port.pending is not None:
                    port.wait_pending()
                return _count(port) if asked.kind == "count" else _exit(port)
    except (HostError, SessionLost) as error:
        _say(lost=f"{getattr(error, 'reason', '')} {error}")
        return 3
    except (KeyboardInterrupt, Interrupted):
        return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _interrupt(port: VcpuPort) -> None:
    """End what the port waits for.

    An exception out of a handler may come while gRPC starts a call, which then has no thread to serve it: closing the
    channel waits for that call for ever.
    """
    threading.Thread(target=port.interrupt, daemon=True).start()


def _tls(folder: Path, vm: str) -> ClientTls:
    return ClientTls(folder / f"guest-{vm}.pem", folder / f"guest-{vm}.key", folder / "ca.pem")


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _count(port: VcpuPort) -> int:
    port.submit(Xsetbv(value=_XCR0_AVX))
    number = _read(port)
    _say(start=number)
    while True:
        number += 1
        port.submit(RegisterWrite(_YMM, 0, number.to_bytes(_WIDTH, "little")))
        found = _read(port)
        if found != number:
            _say(lost=f"wrote {number}, read {found}")
            return 1
        _say(acked=number)
        time.sleep(_PAUSE_S)


def _read(port: VcpuPort) -> int:
    outcome = port.submit(RegisterRead(_YMM, 0, _WIDTH))
    assert isinstance(outcome, Done), outcome
    return int.from_bytes(outcome.data, "little")


def _exit(port: VcpuPort) -> int:
    port.on_pending = lambda waiting: _say(exit=waiting.pending.exit)
    _say(start=0)
    number = 0
    while True:
        outcome = port.submit(Xsetbv(value=_XCR0_AMX))
        if not isinstance(outcome, Injected) or outcome.vector != _GP:
            _say(lost=f"expected #GP, got {outcome}")
            return 1
        number += 1
        _say(acked=number)
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    sys.exit(main())
