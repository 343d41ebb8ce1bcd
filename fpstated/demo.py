"""``fpstated demo``: the founding mail end to end, with every part its own process.

    host         fpstated host --faults --check-invariants --timeline
    controller   fpstated controller
    guest a      grows
    guest b      its allocation fails with ENOMEM twice; the controller says RETRY_AFTER; then it grows
    guest c      its process never asked for permission; the controller's answer is #GP, and the guest survives it

While b is parked, c runs: nobody waits for somebody else's memory. At the end the host itself is asked what became of
each vCPU, and the demonstration fails if that is not the story.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import exit_pb2, exit_pb2_grpc, vcpu_pb2, vcpu_pb2_grpc
from rich.console import Console

from fpstated.demo_process import DemoProcess, Feed, ProcessFailedError
from guest_agent.kvm import kvm_available

_READY_S = 30.0
_GUEST_S = 60.0
_ENOMEM = 12


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """One guest of the demonstration."""

    vm: str
    title: str
    order: str
    permission: bool = True
    fail_times: int = 0


PLANS = (
    GuestPlan("a", "arms XFD first; its #NM handler's XFD write grows the container", "xfd-armed-first"),
    GuestPlan("b", "the same, but memory is short: ENOMEM twice", "xfd-armed-first", fail_times=2),
    GuestPlan("c", "its VMM never asked for permission: EPERM", "xfd-armed-first", permission=False),
)


class DemoError(Exception):
    """The demonstration did not go as it must; the text says where."""


def run_demo(kind: str, *, verbose: bool, record: Path | None) -> int:
    """Run it; returns 0 if the story came out as told above, 1 if not, 130 after Ctrl-C."""
    console = Console(highlight=False)
    unavailable = kvm_available()
    if kind == "auto":
        kind = "script" if unavailable else "kvm"
    elif kind == "kvm" and unavailable:
        print(f"fpstated demo: no real guests here: {unavailable}", file=sys.stderr)
        return 1
    if kind == "script":
        reason = f" ({unavailable})" if unavailable else ""
        console.print(f"Guests: scripted, the same programs without /dev/kvm{reason}", soft_wrap=True)
    else:
        console.print("Guests: real code under /dev/kvm")
    try:
        return asyncio.run(_run(console, kind, verbose=verbose, record=record))
    except (DemoError, ProcessFailedError) as error:
        print(f"fpstated demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fpstated demo: interrupted; every process it started is stopped", file=sys.stderr)
        return 130


async def _run(console: Console, kind: str, *, verbose: bool, record: Path | None) -> int:
    return await _Demo(console, kind, Feed(console, verbose=verbose), record).run()


class _Demo:
    """One run: the processes, the feed of their lines, and what the host says at the end."""

    def __init__(self, console: Console, kind: str, feed: Feed, record: Path | None) -> None:
        self._console = console
        self._kind = kind
        self._record = record
        self._feed = feed

    async def run(self) -> int:
        with tempfile.TemporaryDirectory(prefix="fpstated-demo-") as folder:
            address = f"unix:{folder}/host.sock"
            async with AsyncExitStack() as stack:
                stack.push_async_callback(self._feed.close)
                await self._start_host(stack, address)
                await self._start_controller(stack, address)
                channel = await stack.enter_async_context(_channel(address))
                for plan in PLANS:
                    await _arm(channel, plan)
                self._legend()
                await self._run_guests(stack, address)
                await self._feed.drain()
                summary = await _summary(channel, self._kind)
        self._say(summary)
        return 0

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _legend(self) -> None:
        self._say("H host   G guest   U userspace: the controller; sizes are bytes of the container's image")
        for plan in PLANS:
            self._say(f"  {plan.vm}: {plan.title}")
        self._say("")

    async def _start_host(self, stack: AsyncExitStack, address: str) -> None:
        arguments = ["host", "--listen", address, "--faults", "--check-invariants", "--timeline", "--grace", "1"]
        arguments += ["--state-dir", str(Path(address.removeprefix("unix:")).parent / "state")]
        if self._record is not None:
            arguments += ["--record", str(self._record)]
        host = await stack.enter_async_context(DemoProcess.started("host", arguments, self._feed))
        await host.said(lambda line: '"ready"' in line, _READY_S)

    async def _start_controller(self, stack: AsyncExitStack, address: str) -> None:
        arguments = ["controller", "--timeline", "--host", address, "--name", "demo-controller", "--seed", "2021"]
        arguments += ["--policy", "vms/b=retry-after:base=0.3,factor=2,tries=5,then=pause"]
        controller = await stack.enter_async_context(DemoProcess.started("controller", arguments, self._feed))
        await controller.said(lambda line: '"watching"' in line, _READY_S)

    async def _run_guests(self, stack: AsyncExitStack, address: str) -> None:
        """A first; then b; and c as soon as b is parked."""
        first, second, third = PLANS
        a = await self._start_guest(stack, address, first)
        await a.finished(_GUEST_S)
        self._feed.watch_for("vms/b/vcpus/0", "KVM_RUN returns")
        b = await self._start_guest(stack, address, second)
        await self._feed.seen(_GUEST_S)
        c = await self._start_guest(stack, address, third)
        await c.finished(_GUEST_S)
        await b.finished(_GUEST_S)

    async def _start_guest(self, stack: AsyncExitStack, address: str, plan: GuestPlan) -> DemoProcess:
        arguments = ["guest", "--host", address, "--vm", plan.vm, "--kind", self._kind, "--order", plan.order]
        arguments += ["--timeline"] + ([] if plan.permission else ["--no-permission"])
        return await stack.enter_async_context(DemoProcess.started(f"guest {plan.vm}", arguments, self._feed))


@asynccontextmanager
async def _channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


async def _arm(channel: grpc.aio.Channel, plan: GuestPlan) -> None:
    """Make the VM's next growths fail, as often as the plan says."""
    if not plan.fail_times:
        return
    fault = fault_pb2.Fault(
        point="fpstate.realloc.alloc",
        scope=fault_pb2.FaultScope(vm=f"vms/{plan.vm}"),
        attributes=fault_pb2.FaultAttributes(times=plan.fail_times),
        action=fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=_ENOMEM)),
    )
    await fault_pb2_grpc.FaultServiceStub(channel).ArmFault(fault_pb2.ArmFaultRequest(fault=fault), timeout=10)


async def _summary(channel: grpc.aio.Channel, kind: str) -> str:
    """Ask the host what became of each vCPU; ``DemoError`` if it is not what the story says."""
    sizes = {plan.vm: await _size(channel, plan.vm) for plan in PLANS}
    exits = {plan.vm: await _exits(channel, plan.vm) for plan in PLANS}
    _expect("a grew, without an exit", sizes["a"] == sizes["b"] > sizes["c"] and not exits["a"])
    (b,), (c,) = exits["b"], exits["c"]
    _expect("b was committed at its third attempt", b.attempt == 3 and b.result == exit_pb2.EXIT_RESULT_COMMITTED)
    _expect("c was refused for want of permission", c.result == exit_pb2.EXIT_RESULT_INJECTED_GP)
    guests = "3 real KVM guests" if kind == "kvm" else "3 scripted guests"
    return (
        f"demo: {guests}: a grew {sizes['c']:,} -> {sizes['a']:,} B; b grew at attempt {b.attempt}, after 2 x "
        f"{b.errno_name} and 2 decisions; c got #GP ({c.errno_name}) and went on without tiles; "
        "every invariant held after every command"
    )


def _expect(what: str, came_out: bool) -> None:
    if not came_out:
        raise DemoError(f"expected that {what}; see the timeline")


async def _size(channel: grpc.aio.Channel, vm: str) -> int:
    request = vcpu_pb2.GetVcpuRequest(name=f"vms/{vm}/vcpus/0")
    response = await vcpu_pb2_grpc.VcpuServiceStub(channel).GetVcpu(request, timeout=10)
    return response.vcpu.fpstate.size_bytes


async def _exits(channel: grpc.aio.Channel, vm: str) -> list[exit_pb2.Exit]:
    request = exit_pb2.ListExitsRequest(vm=f"vms/{vm}", states=list(exit_pb2.ExitState.values())[1:])
    response = await exit_pb2_grpc.ExitServiceStub(channel).ListExits(request, timeout=10)
    return list(response.exits)
