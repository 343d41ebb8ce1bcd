"""``fpstated host``: one host agent as a process, from its socket to its last log line."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from fpstated.timeline import TimelineLine
from host_agent import commands
from host_agent.log import config_line, record_line
from host_agent.service.address import AddressError
from host_agent.service.server import HostServer
from host_agent.state import HostConfig
from host_agent.timeline import HostLine, HostTimeline


def run_host(
    config: HostConfig,
    listen: str,
    *,
    insecure_tcp: bool = False,
    record: Path | None = None,
    timeline: bool = False,
    grace_s: float = 5.0,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain for at most ``grace_s``. Returns the exit status.

    ``record`` receives every command as a line; ``timeline`` writes lane H as JSON lines to standard output, after a
    first line ``{"ready": ADDRESS}``.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        return asyncio.run(_serve(config, listen, insecure_tcp, record, timeline=timeline, grace_s=grace_s))
    except (AddressError, OSError) as error:
        print(f"fpstated host: {error}", file=sys.stderr)
        return 1


async def _serve(
    config: HostConfig, listen: str, insecure_tcp: bool, record: Path | None, *, timeline: bool, grace_s: float
) -> int:
    server = HostServer(config, listen, allow_insecure_tcp=insecure_tcp)
    log = record.open("x", encoding="utf-8") if record is not None else None
    try:
        observer = _observe(server, log, timeline=timeline)
        await server.start()
        _say_ready(server.address, timeline=timeline)
        await _until_signal()
        await server.drain_and_stop(grace_s)
        del observer
    finally:
        if log is not None:
            log.close()
    return 0


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


def _say_ready(address: str, *, timeline: bool) -> None:
    if timeline:
        print(json.dumps({"ready": address}), flush=True)
    else:
        print(f"fpstated host: listening on {address}; Ctrl-C ends it", file=sys.stderr, flush=True)


async def _until_signal() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
