"""FaultService: refused as a whole unless the host was started with faults."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc

from fault_lab.injection.table import ArmedFault
from host_agent.commands import DisarmFault
from host_agent.service.agent import HostAgent
from host_agent.service.errors import Failure, unimplemented
from host_agent.service.layers import Context
from host_agent.service.paging import page
from host_agent.service.translate.fault import arm_fault_from_proto, fault_to_proto
from host_agent.service.translate.fields import fault_name, header, request_id


class FaultService(fault_pb2_grpc.FaultServiceServicer):
    """Faults at the host's own points."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent

    async def ArmFault(self, request: fault_pb2.ArmFaultRequest, context: Context) -> fault_pb2.ArmFaultResponse:
        """Arm a fault."""
        self._check_enabled()
        fault: ArmedFault = self._agent.submit(arm_fault_from_proto(request))
        return fault_pb2.ArmFaultResponse(header=header(self._agent.state), fault=fault_to_proto(fault))

    async def DisarmFault(
        self, request: fault_pb2.DisarmFaultRequest, context: Context
    ) -> fault_pb2.DisarmFaultResponse:
        """Remove a fault and return it. A repetition by request id returns its name alone: the counts are gone."""
        self._check_enabled()
        name = fault_name("name", request.name)
        fault = self._agent.state.faults.armed.get(name)
        self._agent.submit(DisarmFault(name=name, request_id=request_id(request.request_id)))
        message = fault_to_proto(fault) if fault is not None else fault_pb2.Fault(name=name)
        return fault_pb2.DisarmFaultResponse(header=header(self._agent.state), fault=message)

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
        order = {name: nr for nr, name in enumerate(self._agent.state.faults.armed)}
        faults, token = page(
            self._owned(request.owner),
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
        request_id(request.request_id)
        faults = self._owned(request.owner)
        for fault in faults:
            self._agent.submit(DisarmFault(name=fault.name))
        return fault_pb2.ResetFaultsResponse(
            header=header(self._agent.state), faults=[fault_to_proto(fault) for fault in faults]
        )

    async def WatchFaults(
        self, request: fault_pb2.WatchFaultsRequest, context: Context
    ) -> AsyncIterator[fault_pb2.WatchFaultsResponse]:
        """Not in this release."""
        self._check_enabled()
        raise unimplemented("/fpstate.fault.v1.FaultService/WatchFaults", "faults")
        yield  # type: ignore[unreachable]  # what makes it a stream

    async def Evaluate(self, request: fault_pb2.EvaluateRequest, context: Context) -> fault_pb2.EvaluateResponse:
        """Not in this release."""
        self._check_enabled()
        raise unimplemented("/fpstate.fault.v1.FaultService/Evaluate", "faults")

    async def AdvanceClock(
        self, request: fault_pb2.AdvanceClockRequest, context: Context
    ) -> fault_pb2.AdvanceClockResponse:
        """Not in this release."""
        self._check_enabled()
        raise unimplemented("/fpstate.fault.v1.FaultService/AdvanceClock", "manual-clock")

    def _owned(self, owner: str) -> list[ArmedFault]:
        return [fault for fault in self._agent.state.faults.armed.values() if owner in ("", fault.owner)]

    def _check_enabled(self) -> None:
        if not self._agent.state.config.faults:
            raise Failure("FAULTS_NOT_ENABLED", "this host was not started with fault injection (--faults)")
