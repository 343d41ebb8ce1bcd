"""``fpstated proxy``: a way to a host, or to any gRPC server, that a plan breaks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fpstated.files import os_problem

if TYPE_CHECKING:
    from fault_lab.live.points import LiveFaults
    from fault_lab.live.proxy import WayStats
    from fault_lab.plan.numbered import Fired


def proxy(
    listen: Annotated[str, typer.Option(metavar="ADDRESS", help="unix:PATH or HOST:PORT; port 0 takes a free one.")],
    target: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to forward to: unix:PATH or HOST:PORT.")],
    plan: Annotated[str, typer.Option(metavar="PLAN", help="A plan: its faults at link.message are armed.")] = "",
    link: Annotated[
        str, typer.Option(metavar="FROM->TO", help="The link of the plan that this is, from who connects on.")
    ] = "client->server",
    phase: Annotated[
        str, typer.Option(help="The phase of the plan whose faults are armed: warm, chaos, heal or settle.")
    ] = ("chaos"),
) -> None:
    """Forward connections, and do to each gRPC message what a plan says of its link. Without a plan, nothing.

    Each fault that fires is a line; the last lines say what went through. SIGUSR1 heals: the phase is then `heal`.
    """
    import asyncio
    from importlib.util import find_spec

    if find_spec("yaml") is None or find_spec("hpack") is None or find_spec("numpy") is None:
        _refuse("this install is a guest's; this needs: pip install 'fpstated[live]'")
    from fault_lab.plan.problem import PlanError

    try:
        faults = _faults(plan, link, phase)
        asyncio.run(_forward(listen, target, _nodes(link), faults))
    except PlanError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as error:
        _refuse(os_problem(error) if error.filename else f"--listen {listen}: {os_problem(error)}")
    except ValueError as error:
        _refuse(str(error))


def _faults(plan: str, link: str, phase: str) -> LiveFaults | None:
    if not plan:
        return None
    from fault_lab.live.points import LiveFaults
    from fault_lab.plan.entities import links
    from fault_lab.plan.resolve import PHASES
    from fpstated.faults_command import load_named_plan

    if phase not in PHASES:
        raise ValueError(f"--phase: expected one of {', '.join(PHASES)}, got {phase!r}")
    loaded = load_named_plan(plan)
    if link not in links(loaded):
        raise ValueError(f"--link: expected one of {', '.join(links(loaded))}, got {link!r}")
    faults = LiveFaults(loaded, on_fired=_say_fired)
    faults.enter(phase)
    return faults


def _nodes(link: str) -> tuple[str, str]:
    source, arrow, to = link.partition("->")
    if not (source and arrow and to):
        raise ValueError(f"--link: expected FROM->TO, got {link!r}")
    return source, to


async def _forward(listen: str, target: str, nodes: tuple[str, str], faults: LiveFaults | None) -> None:
    import asyncio
    import signal

    from fault_lab.live.proxy import Proxy

    over, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    if faults is not None:
        loop.add_signal_handler(signal.SIGUSR1, faults.enter, "heal")
    async with Proxy(listen, target, link=nodes, faults=faults) as running:
        print(f"listening at {running.address}, forwarding to {target}", flush=True)
        await over.wait()
        stats = running.stats()
    for way in (stats.there, stats.back):
        print(_way_line(way))
    print(f"{stats.accepted} connections, {stats.refused} refused, {stats.opaque} unread")


def _say_fired(fired: Fired) -> None:
    print(f"{fired.fault}: hit {fired.hit} of {fired.point} at {fired.entity}: {fired.action}", flush=True)


def _way_line(way: WayStats) -> str:
    return f"{way.link}: {way.bytes} bytes, {way.messages} messages, {way.fired} faults"


def _refuse(text: str) -> None:
    print(f"fpstated proxy: {text}", file=sys.stderr)
    raise typer.Exit(2)
