"""``fpstated host``: one host agent as a process, from its socket to its last log line."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import suppress
from typing import TextIO

from fpstated.host_config import HostRun
from fpstated.link.spans import start_export
from fpstated.logs import set_up_logging
from fpstated.sd_notify import sd_notify, watchdog_s
from fpstated.timeline import TimelineLine
from host_agent import commands
from host_agent.errors import Refused
from host_agent.journal.errors import JournalError
from host_agent.log import config_line, record_line
from host_agent.service.address import AddressError
from host_agent.service.credentials import CredentialsError
from host_agent.service.server import HostServer
from host_agent.timeline import HostLine, HostTimeline

#: How long calls under way have to hear that the host cannot go on, in seconds.
_LAST_WORD_S = 0.5


def run_host(run: HostRun) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Returns the exit status: 1 also where the journal has failed."""
    set_up_logging(run.log_format, run.log_level)
    try:
        if run.trace_export != "none":
            start_export(run.trace_export, service="fpstated-host")
        return asyncio.run(_serve(run))
    except ImportError as error:
        print(f"fpstated host: --trace-export needs: pip install 'fpstated[otel]' ({error})", file=sys.stderr)
        return 2
    except Refused as refused:
        where = run.journal.directory if run.journal is not None else "in memory"
        print(f"fpstated host: {where}: {refused.text}", file=sys.stderr)
        return 1
    except (AddressError, CredentialsError, JournalError, OSError) as error:
        print(f"fpstated host: {error}", file=sys.stderr)
        return 1


async def _serve(run: HostRun) -> int:
    server = HostServer(
        run.config, run.listen, options=run.options, allow_insecure_tcp=run.insecure_tcp, journal=run.journal
    )
    failed = server.agent.failed
    log = run.record.open("x", encoding="utf-8") if run.record is not None else None
    stop = _on_signal()  # before anybody hears that it is ready, and may stop it
    try:
        observer = _observe(server, log, timeline=run.timeline)
        await server.start()
        _say_ready(server, timeline=run.timeline)
        watchdog = asyncio.create_task(_watchdog(), name="watchdog")
        await _either(stop, failed)
        sd_notify("STOPPING=1")
        if failed.is_set():
            await server.stop(_LAST_WORD_S)
        else:
            await server.drain_and_stop(run.grace_s)
        watchdog.cancel()
        del observer
    finally:
        await server.stop()
        if log is not None:
            log.close()
    return 1 if failed.is_set() else 0


async def _watchdog() -> None:
    """Tell the service manager that the loop turns, as often as it wants to hear it, until the process ends."""
    interval_s = watchdog_s()
    while interval_s is not None:
        sd_notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)


def _observe(server: HostServer, log: TextIO | None, *, timeline: bool) -> HostTimeline | None:
    """Listen to what is applied: for the log, and for lane H."""
    machine = server.agent.machine
    lane = HostTimeline(_print_line) if timeline else None
    if lane is not None:
        lane.attach(machine)
        machine.state.tracer = lane
    if log is not None:
        log.write(config_line(machine.state.config) + "\n")

    def applied(now_ns: int, command: commands.Command, reply: object) -> None:
        if log is not None:
            log.write(record_line(now_ns, command) + "\n")
            log.flush()
        if lane is not None:
            lane.applied(now_ns, command, reply)

    if log is not None or lane is not None:
        machine.on_applied = applied
    return lane


def _print_line(line: HostLine) -> None:
    with suppress(BrokenPipeError):
        print(TimelineLine(time.monotonic_ns(), "H", line.vcpu, line.text, line.tone).to_json(), flush=True)


def _say_ready(server: HostServer, *, timeline: bool) -> None:
    sd_notify(f"READY=1\nSTATUS=serving on {server.address}")
    if timeline:
        print(json.dumps({"ready": server.address}), flush=True)
        return
    said = f"listening on {server.address}"
    if server.metrics_address:
        said += f", metrics on http://{server.metrics_address}/metrics"
    if server.admin_address:
        said += f", channelz on {server.admin_address}"
    print(f"fpstated host: {said}; Ctrl-C ends it", file=sys.stderr, flush=True)


def _on_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT from here on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _either(*events: asyncio.Event) -> None:
    """Return when one of them is set."""
    waits = {asyncio.create_task(event.wait()) for event in events}
    _, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
