"""A host agent's process behind the proxy: what it acknowledged is there, whatever became of the replies."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from fpstate.v1 import vm_pb2, vm_pb2_grpc

from fault_lab.live.proxy import Proxy
from guest_agent.channel import connect_async
from tests.host_process import HostProcess
from tests.wire.plans import armed


@pytest.mark.asyncio
async def test_a_lost_reply_is_asked_for_again_with_the_same_request_id(tmp_path: Path) -> None:
    """Every other reply is lost and every third request doubled; each VM is made once, and the same answer is heard."""
    faults = armed(
        "point: link.message, scope: {entity: 'host->vms/a'}, attributes: {interval: 2}, action: {drop: {}}",
        "point: link.message, scope: {entity: 'vms/a->host'}, attributes: {interval: 3}, action: {duplicate: {}}",
    )
    with HostProcess(tmp_path) as host:
        async with (
            Proxy("127.0.0.1:0", host.address, link=("vms/a", "host"), faults=faults) as proxy,
            connect_async(proxy.address) as channel,
        ):
            stub = vm_pb2_grpc.VmServiceStub(channel)
            answers: list[vm_pb2.CreateVmResponse] = []
            lost = 0
            for nr in range(6):
                request = vm_pb2.CreateVmRequest(vm_id=f"v{nr}", request_id=f"make-{nr}")
                while len(answers) == nr:
                    try:
                        answers.append(await stub.CreateVm(request, timeout=0.5))
                    except grpc.aio.AioRpcError as error:
                        lost += error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            faults.enter("settle")
            listed = await stub.ListVms(vm_pb2.ListVmsRequest(), timeout=10)
    assert [answer.vm.name for answer in answers] == [f"vms/v{nr}" for nr in range(6)]
    assert sorted(vm.name for vm in listed.vms) == [f"vms/v{nr}" for nr in range(6)]
    fired = {each.fault for each in faults.fired}
    assert fired == {"f1", "f2"}
    # A busy machine may be too slow for a deadline as well.
    assert lost >= sum(each.fault == "f1" for each in faults.fired) > 0
