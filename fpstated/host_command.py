"""``fpstated host``: one host agent as a process, from its socket to its last log line."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

from fpstated.command_log import CommandLog
from fpstated.host_config import HostRun
from fpstated.link.spans import start_export
from fpstated.logs import set_up_logging
from fpstated.sd_notify import sd_notify, watchdog_s
from fpstated.timeline import TimelineLine
from host_agent.errors import Refused
from host_agent.journal.errors import JournalError
from host_agent.journal.fault_disk import FaultDisk
from host_agent.journal.journal import JournalOptions
from host_agent.service.address import AddressError
from host_agent.service.credentials import CredentialsError
from host_agent.service.fault_points import FaultPoints
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
        run.config, run.listen, options=run.options, allow_insecure_tcp=run.insecure_tcp, journal=_on_disk(run)
    )
    failed = server.agent.failed
    stop = _on_signal()  # before anybody hears that it is ready, and may stop it
    async with AsyncExitStack() as stack:
        if run.record is not None:
            server.agent.listeners.append(stack.enter_context(CommandLog(run.record, server.agent)))
        stack.push_async_callback(server.stop)
        lane = _lane(server) if run.timeline else None
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
        del lane
    return 1 if failed.is_set() else 0


def _on_disk(run: HostRun) -> JournalOptions | None:
    """The journal, on a disk that somebody may break where the host was started so."""
    if run.journal is None or not run.fault_points:
        return run.journal
    disk = FaultDisk("fpstated-faults", FaultPoints(run.fault_points, run.config.host).errno)
    return replace(run.journal, vfs=disk.name, before_commit=disk.before_commit)


async def _watchdog() -> None:
    """Tell the service manager that the loop turns, as often as it wants to hear it, until the process ends."""
    interval_s = watchdog_s()
    while interval_s is not None:
        sd_notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)


def _lane(server: HostServer) -> HostTimeline:
    """Let lane H hear what is applied."""
    machine = server.agent.machine
    lane = HostTimeline(_print_line)
    lane.attach(machine)
    machine.state.tracer = lane
    machine.on_applied = lane.applied
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
