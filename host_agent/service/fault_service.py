"""FaultService: refused as a whole unless the host was started with faults."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc

from fault_lab.injection.table import ArmedFault
from fault_lab.wire.duration import DAY_NS
from host_agent.commands import DisarmFault, RenewFaults, ResetFaults
from host_agent.faults import Verdict
from host_agent.service.agent import HostAgent
from host_agent.service.clock import NS_PER_S, ManualClock, SkewedClock
from host_agent.service.errors import Failure, field_invalid
from host_agent.service.fault_watch import FaultWatcher, FaultWatchers
from host_agent.service.layers import Context
from host_agent.service.paging import page
from host_agent.service.stream_age import StreamAge
from host_agent.service.translate.fault import (
    arm_fault_from_proto,
    evaluate_from_proto,
    fault_to_proto,
    verdict_to_proto,
)
from host_agent.service.translate.fields import duration, duration_ns, fault_name, header, request_id, text

_ADVANCE_NS_MAX = 10_000 * DAY_NS
_PPM = 1_000_000


class FaultService(fault_pb2_grpc.FaultServiceServicer):
    """Faults at the host's own points, and at those of programs that ask."""

    def __init__(self, agent: HostAgent, watchers: FaultWatchers, age: StreamAge) -> None:
        self._agent = agent
        self._age = age
        self._watchers = watchers

    async def ArmFault(self, request: fault_pb2.ArmFaultRequest, context: Context) -> fault_pb2.ArmFaultResponse:
        """Arm a fault."""
        self._check_enabled()
        fault: ArmedFault = self._agent.submit(arm_fault_from_proto(request))
        return fault_pb2.ArmFaultResponse(header=header(self._agent.state), fault=fault_to_proto(fault))

    async def DisarmFault(
        self, request: fault_pb2.DisarmFaultRequest, context: Context
    ) -> fault_pb2.DisarmFaultResponse:
        """Remove a fault and return it as it was last."""
        self._check_enabled()
        command = DisarmFault(name=fault_name("name", request.name), request_id=request_id(request.request_id))
        fault: ArmedFault = self._agent.submit(command)
        return fault_pb2.DisarmFaultResponse(header=header(self._agent.state), fault=fault_to_proto(fault))

    async def GetFault(self, request: fault_pb2.GetFaultRequest, context: Context) -> fault_pb2.GetFaultResponse:
        """Return a fault with its counts."""
        self._check_enabled()
        name = fault_name("name", request.name)
        fault = self._agent.state.faults.armed.get(name)
        if fault is None:
            raise Failure.because("FAULT_NOT_FOUND", f"there is no fault {name!r}", fault=name)
        return fault_pb2.GetFaultResponse(header=header(self._agent.state), fault=fault_to_proto(fault))

    async def ListFaults(self, request: fault_pb2.ListFaultsRequest, context: Context) -> fault_pb2.ListFaultsResponse:
        """List the armed faults in the order in which they were armed."""
        self._check_enabled()
        table = self._agent.state.faults
        order = {name: nr for nr, name in enumerate(table.armed)}
        faults, token = page(
            table.owned(request.owner),
            lambda fault: (order[fault.name], fault.name),
            size=request.page_size,
            token=request.page_token,
        )
        return fault_pb2.ListFaultsResponse(
            header=header(self._agent.state),
            faults=[fault_to_proto(fault) for fault in faults],
            next_page_token=token,
        )

    async def ResetFaults(
        self, request: fault_pb2.ResetFaultsRequest, context: Context
    ) -> fault_pb2.ResetFaultsResponse:
        """Disarm every fault, or every fault of one owner. Doing it again disarms nothing more."""
        self._check_enabled()
        owner = text("owner", request.owner, longest=128)
        command = ResetFaults(owner=owner, request_id=request_id(request.request_id))
        faults: tuple[ArmedFault, ...] = self._agent.submit(command)
        return fault_pb2.ResetFaultsResponse(
            header=header(self._agent.state), faults=[fault_to_proto(fault) for fault in faults]
        )

    async def RenewFaults(
        self, request: fault_pb2.RenewFaultsRequest, context: Context
    ) -> fault_pb2.RenewFaultsResponse:
        """Start the leases of an owner's faults anew."""
        self._check_enabled()
        owner = text("owner", request.owner, longest=128)
        renewed: int = self._agent.submit(RenewFaults(owner=owner, request_id=request_id(request.request_id)))
        return fault_pb2.RenewFaultsResponse(header=header(self._agent.state), renewed=renewed)

    async def WatchFaults(
        self, request: fault_pb2.WatchFaultsRequest, context: Context
    ) -> AsyncIterator[fault_pb2.WatchFaultsResponse]:
        """What is armed already, then what happens to faults."""
        self._check_enabled()
        watcher = FaultWatcher(text("owner", request.owner, longest=128))
        self._watchers.add(watcher)
        try:
            with self._age.limit(watcher.retire):
                while (news := await watcher.next()) is not None:
                    yield news
        finally:
            self._watchers.remove(watcher)

    async def Evaluate(self, request: fault_pb2.EvaluateRequest, context: Context) -> fault_pb2.EvaluateResponse:
        """Count a hit of somebody else's point and say what is to happen there."""
        self._check_enabled()
        verdict: Verdict = self._agent.submit(evaluate_from_proto(request))
        response = fault_pb2.EvaluateResponse(header=header(self._agent.state))
        verdict_to_proto(verdict, response)
        return response

    async def AdvanceClock(
        self, request: fault_pb2.AdvanceClockRequest, context: Context
    ) -> fault_pb2.AdvanceClockResponse:
        """Move a clock on, or let it run fast or slow. A request id is remembered nowhere."""
        self._check_enabled()
        clock = self._agent.clock
        if not isinstance(clock, ManualClock | SkewedClock):
            raise Failure("CLOCK_NOT_MANUAL", "this host runs on the system's clock")
        advance_ns = duration_ns("duration", request.duration)
        if advance_ns > _ADVANCE_NS_MAX:
            raise field_invalid("duration", "0 to 10,000 days", f"{advance_ns} ns")
        if isinstance(clock, ManualClock):
            if request.drift_ppm:
                raise field_invalid("drift_ppm", "0 for a clock that is moved by hand", request.drift_ppm)
            clock.advance(advance_ns / NS_PER_S)
        else:
            if not -_PPM < request.drift_ppm <= _PPM:
                raise field_invalid("drift_ppm", "-999,999..1,000,000", request.drift_ppm)
            clock.skew(advance_ns, request.drift_ppm)
        return fault_pb2.AdvanceClockResponse(header=header(self._agent.state), uptime=duration(clock.now_ns()))

    def _check_enabled(self) -> None:
        if not self._agent.state.config.faults:
            raise Failure("FAULTS_NOT_ENABLED", "this host was not started with fault injection (--faults)")
