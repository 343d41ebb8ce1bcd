"""State in and out over the wire: KVM's errno as KVM_ERRNO, partial counts as replies, parked vCPUs left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from fpstate.v1 import event_pb2, exit_pb2, vcpu_pb2

from guest_agent.aio_host import AsyncHost
from guest_agent.error import HostError
from guest_agent.host import Host
from tests.service.world import IA32_XFD, XCR0_AMX, XTILE_DATA, World, error_info

XFD_ERR, XSS = 0x1C5, 0xDA0


def buffer(bv: int, size: int = 11008) -> bytes:
    """A buffer that says it holds ``bv``."""
    raw = bytearray(size)
    raw[24:28] = (0x1F80).to_bytes(4, "little")
    raw[512:520] = bv.to_bytes(8, "little")
    return bytes(raw)


async def refused(call: Any) -> grpc.aio.AioRpcError:  # noqa: ANN401 -- a call has no public type
    """The error of a call that has to fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def host_error(errno_name: str, call: str) -> Callable[[HostError], bool]:
    """Whether a client's error is the kernel's own."""
    return lambda error: (
        error.refusal.reason == "KVM_ERRNO"
        and error.refusal.metadata["errnoName"] == errno_name
        and error.refusal.metadata["call"] == call
    )


@pytest.mark.asyncio
async def test_there_and_back(world: World) -> None:
    """What one vCPU gives another takes, and gives again: the registers, XCR0, XFD and XSS."""
    vm = await world.vm(vcpus=2)
    one, other = f"{vm}/vcpus/0", f"{vm}/vcpus/1"
    async with AsyncHost(world.server.address) as host:
        size = await host.required_size(vm)
        grown = await host.set_xsave(one, buffer(XCR0_AMX & ~0x200))
        assert (grown.reallocated.old_bytes, grown.reallocated.new_bytes) == (2560, 10752)
        await host.set_xcrs(one, {0: XCR0_AMX})
        assert (await host.set_msrs(one, [(IA32_XFD, 0), (XSS, 0x1800)])).processed == 2
        saved = (await host.get_xsave2(one)).ljust(size, b"\0")
        assert (size, len(saved)) == (11008, 11008)
        await host.set_xsave(other, saved)
        await host.set_xcrs(other, await host.get_xcrs(one))
        await host.set_msrs(other, await host.get_msrs(one, [IA32_XFD, XFD_ERR, XSS]))
        assert await host.get_xsave2(other) == saved
        assert await host.get_xcrs(other) == {0: XCR0_AMX}
        assert await host.get_msrs(other, [XSS, IA32_XFD]) == [(XSS, 0x1800), (IA32_XFD, 0)]


@pytest.mark.asyncio
async def test_the_blocking_client_says_the_same(world: World) -> None:
    """Every call once, from another thread."""
    vcpu = f"{await world.vm()}/vcpus/0"

    def calls() -> list[Any]:
        with Host(world.server.address) as host:
            return [
                host.required_size("vms/a"),
                host.get_xsave(vcpu) == host.get_xsave2(vcpu),
                host.set_xsave(vcpu, buffer(3)).HasField("reallocated"),
                host.set_xcrs(vcpu, {0: 7}).HasField("reallocated"),
                host.get_xcrs(vcpu),
                host.set_msrs(vcpu, [(IA32_XFD, XTILE_DATA), (IA32_XFD, 1)]).processed,
                host.get_msrs(vcpu, [IA32_XFD, 0x10]),
            ]

    expected = [11008, True, False, False, {0: 7}, 1, [(IA32_XFD, XTILE_DATA)]]
    assert await asyncio.to_thread(calls) == expected


@pytest.mark.asyncio
async def test_kvms_errno_is_named(world: World) -> None:
    """EINVAL, EFAULT, E2BIG and ENOMEM, each with its call and its status code; nothing has changed."""
    vcpu = f"{await world.vm()}/vcpus/0"
    before = await world.vcpus.GetVcpu(vcpu_pb2.GetVcpuRequest(name=vcpu))
    await world.fail_next_growth()
    async with AsyncHost(world.server.address) as host:
        wanted: list[tuple[Any, str, str, str]] = [
            (host.set_xsave(vcpu, buffer(1 << 63)), "EINVAL", "KVM_SET_XSAVE", "INVALID_ARGUMENT"),
            (host.set_xsave(vcpu, buffer(3, 4095)), "EFAULT", "KVM_SET_XSAVE", "INVALID_ARGUMENT"),
            (host.set_xcrs(vcpu, {0: 5}), "EINVAL", "KVM_SET_XCRS", "INVALID_ARGUMENT"),
            (host.set_msrs(vcpu, [(IA32_XFD, 0)] * 256), "E2BIG", "KVM_SET_MSRS", "INVALID_ARGUMENT"),
            (host.get_msrs(vcpu, [IA32_XFD] * 256), "E2BIG", "KVM_GET_MSRS", "INVALID_ARGUMENT"),
            (host.set_xcrs(vcpu, {0: XCR0_AMX}), "ENOMEM", "KVM_SET_XCRS", "RESOURCE_EXHAUSTED"),
        ]
        for call, errno_name, name, code in wanted:
            with pytest.raises(HostError) as caught:
                await call
            assert host_error(errno_name, name)(caught.value), caught.value
            assert caught.value.refusal.code == code
    after = await world.vcpus.GetVcpu(vcpu_pb2.GetVcpuRequest(name=vcpu))
    assert after.vcpu == before.vcpu
    assert not (await world.exits.ListExits(exit_pb2.ListExitsRequest())).exits


@pytest.mark.asyncio
async def test_get_xsave_after_growth(world: World) -> None:
    """EINVAL from the old call, never a cut; the new one has it all."""
    vcpu = f"{await world.vm()}/vcpus/0"
    async with AsyncHost(world.server.address) as host:
        await host.set_xcrs(vcpu, {0: XCR0_AMX})
        with pytest.raises(HostError) as caught:
            await host.get_xsave(vcpu)
        assert host_error("EINVAL", "KVM_GET_XSAVE")(caught.value)
        assert len(await host.get_xsave2(vcpu)) == 11008


@pytest.mark.asyncio
async def test_in_the_guest_and_parked(world: World) -> None:
    """In the guest nothing can be had; parked on an exit it can be read and not set, and the refusal names the exit."""
    guest = await world.guest(explicit=True)
    vcpu = guest.vcpu
    await guest.submit(guest.event(enter=event_pb2.Enter()))
    inside = await refused(world.vcpus.GetXsave(vcpu_pb2.GetXsaveRequest(name=vcpu)))
    assert error_info(inside).reason == "VCPU_ALREADY_ENTERED"
    await world.fail_next_growth()
    (outcome,) = await guest.submit(guest.enable_tiles())
    exit_name = outcome.pending.exit
    assert len((await world.vcpus.GetXsave(vcpu_pb2.GetXsaveRequest(name=vcpu))).xsave) == 4096
    requests: list[Any] = [
        world.vcpus.SetXsave(vcpu_pb2.SetXsaveRequest(name=vcpu, xsave=buffer(3))),
        world.vcpus.SetXcrs(vcpu_pb2.SetXcrsRequest(name=vcpu)),
        world.vcpus.SetMsrs(vcpu_pb2.SetMsrsRequest(name=vcpu)),
    ]
    for request in requests:
        info = error_info(await refused(request))
        assert (info.reason, dict(info.metadata)) == ("VCPU_PARKED", {"vcpu": vcpu, "exit": exit_name})


@pytest.mark.asyncio
async def test_a_repetition_gets_the_first_answer(world: World) -> None:
    """The same request id: the growth is told again, and does not happen again."""
    vcpu = f"{await world.vm()}/vcpus/0"
    request = vcpu_pb2.SetXcrsRequest(name=vcpu, xcrs=[vcpu_pb2.Xcr(xcr=0, value=XCR0_AMX)], request_id="once")
    first, again = await world.vcpus.SetXcrs(request), await world.vcpus.SetXcrs(request)
    assert first.reallocated == again.reallocated
    assert first.reallocated.new_bytes == 10752


@pytest.mark.asyncio
@pytest.mark.parametrize("protected", [False, True], ids=["KVM_SEV_ES_INIT", "has_protected_state"])
async def test_a_confidential_vcpu(world: World, protected: bool) -> None:
    """Firmware has its registers: zeros and a set in silence from the older VM type, EINVAL from those that say so."""
    async with AsyncHost(world.server.address) as host:
        vm = await host.create_vm("secret", has_protected_state=protected)
        assert vm.has_protected_state == protected
        vcpu = await host.create_vcpu(vm.name, confidential=True)
        assert vcpu.fpstate.confidential
        if not protected:
            assert await host.get_xsave2(vcpu.name) == bytes(4096)
            await host.set_xsave(vcpu.name, buffer(3, 4096))
            assert await host.get_xsave2(vcpu.name) == bytes(4096)
            return
        for call, name in (
            (host.get_xsave2(vcpu.name), "KVM_GET_XSAVE2"),
            (host.set_xsave(vcpu.name, buffer(3, 4096)), "KVM_SET_XSAVE"),
        ):
            with pytest.raises(HostError) as caught:
                await call
            assert host_error("EINVAL", name)(caught.value)
