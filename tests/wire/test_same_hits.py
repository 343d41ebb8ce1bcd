"""The same plan and seed fire the same hits in the simulator and live, where both send the same number of messages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from fault_lab.live.interceptors import CallFaults, aio_client_interceptors
from fault_lab.live.points import LiveFaults
from fault_lab.live.proxy import Proxy
from fault_lab.plan.numbered import Fired
from fault_lab.sim.run import simulate
from tests.wire.echo import UNARY, aio_serving
from tests.wire.plans import plan

THERE, BACK = "vms/a->host", "host->vms/a"
THERE_HITS, BACK_HITS = (f"point: link.message, scope: {{entity: '{link}'}}" for link in (THERE, BACK))
#: How each guest's call fails is left out, so that every call is one request and one reply in both worlds.
FAULTS = (
    f"{THERE_HITS}, attributes: {{probability: 30%}}, action: {{delay: {{max: 3ms}}}}",
    f"{BACK_HITS}, attributes: {{interval: 3}}, action: {{reorder: {{}}}}",
    f"{BACK_HITS}, attributes: {{fail-nth: 4}}, action: {{hold: {{duration: 2ms}}}}",
)


def by_link(fired: list[Fired]) -> dict[str, list[Fired]]:
    """Those of the guest's two ways; in which order two ways' hits come is a matter of time."""
    return {link: [each for each in fired if each.entity == link] for link in (THERE, BACK)}


@pytest.mark.asyncio
async def test_the_simulator_and_the_proxy_fire_the_same_hits(tmp_path: Path) -> None:
    """Each with its number, its fault and its drawn delay."""
    text = plan(*FAULTS)
    simulated = by_link(list(simulate(text, 7).fired))
    assert all(len(simulated[link]) >= 3 for link in simulated)
    messages = max(each.hit for link in simulated for each in simulated[link])
    live = LiveFaults(text)
    live.enter("chaos")
    async with (
        aio_serving(f"unix:{tmp_path}/echo") as (_, address),
        Proxy(f"unix:{tmp_path}/proxy", address, link=("vms/a", "host"), faults=live) as proxy,
        grpc.aio.insecure_channel(proxy.address) as channel,
    ):
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
        for _ in range(messages):
            await call(b"", timeout=10)
    fired = by_link(live.fired)
    for link, hits in simulated.items():
        assert fired[link][: len(hits)] == hits


@pytest.mark.asyncio
async def test_the_simulator_and_an_interceptor_fire_the_same_hits(tmp_path: Path) -> None:
    """``rpc.client.send`` and ``rpc.client.receive`` of a method, by the same numbers."""
    method = "/fpstate.v1.GuestSessionService/SubmitEvents"
    text = plan(
        f"point: rpc.client.send, scope: {{entity: {method}}}, attributes: {{probability: 40%}}, "
        "action: {delay: {max: 1ms}}",
        f"point: rpc.client.receive, scope: {{entity: {method}}}, attributes: {{interval: 2}}, "
        "action: {status: {code: 14}}",
    )
    result = simulate(text, 7)
    simulated = [each for each in result.fired if each.entity == method]
    assert result.violation is None
    assert {each.point for each in simulated} == {"rpc.client.send", "rpc.client.receive"}
    live = LiveFaults(text)
    live.enter("chaos")
    interceptors = aio_client_interceptors(CallFaults(live))
    async with (
        aio_serving(f"unix:{tmp_path}/echo") as (_, address),
        grpc.aio.insecure_channel(address, interceptors=interceptors) as channel,
    ):
        # A server that does not know the method answers it all the same, with a status.
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        for _ in range(max(each.hit for each in simulated)):
            await asyncio.gather(call(b"", timeout=10), return_exceptions=True)
    for point in ("rpc.client.send", "rpc.client.receive"):
        hits = [each for each in simulated if each.point == point]
        assert [each for each in live.fired if each.point == point][: len(hits)] == hits


def test_the_simulator_s_guest_lives_with_calls_that_its_own_grpc_loses() -> None:
    """Lost, doubled, late, held and refused at both points: nothing acknowledged is lost, all is well in the end."""
    kinds = (
        "drop: {}",
        "duplicate: {}",
        "delay: {max: 5ms}",
        "hold: {duration: 5ms}",
        "status: {code: 14}",
        "hold: {}",
    )
    faults = [
        f"point: rpc.client.{point}, attributes: {{probability: 10%, times: 3}}, action: {{{kind}}}"
        for kind in kinds
        for point in ("send", "receive")
    ]
    names: set[str] = set()
    for seed in range(12):
        result = simulate(plan(*faults), seed)
        assert result.violation is None, f"fpstated sim run with seed {seed}: {result.violation}"
        names |= {each.fault for each in result.fired}
    assert names == {f"f{nr}" for nr in range(1, len(faults) + 1)}
