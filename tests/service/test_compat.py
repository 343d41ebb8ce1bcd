"""CheckCompat: everything that stands against a VM, and nothing where nothing does."""

from __future__ import annotations

from pathlib import Path

import pytest
from fpstate.v1 import migration_pb2, vm_pb2

from guest_agent.aio_host import AsyncHost
from guest_agent.error import HostError
from guest_agent.host import Host
from host_agent.compat import requirements_of
from host_agent.service.server import HostServer
from host_agent.service.translate.compat import requirements_from_proto, requirements_to_proto
from host_agent.state import HostConfig
from tests.service.world import XTILE_DATA, World

K = migration_pb2.IncompatibilityKind


async def needed(world: World) -> migration_pb2.VmRequirements:
    """What a VM with permitted tiles and two vCPUs needs."""
    name = await world.vm(vcpus=2)
    return requirements_to_proto(requirements_of(world.server.agent.state.vms[name]))


@pytest.mark.asyncio
async def test_at_home(world: World) -> None:
    """Its own host could run it. The requirements cover what is permitted, not what is held now."""
    wanted = await needed(world)
    assert (wanted.xfeatures & 0x602E7, wanted.dynamic_xfeatures) == (0x602E7, XTILE_DATA)
    assert (wanted.vcpu_count, wanted.container_bytes_max) == (2, 2 * (10752 + 64))
    assert [(each.xfeature, each.offset, each.size) for each in wanted.layouts][-1] == (18, 2816, 8192)
    async with AsyncHost(world.server.address) as host:
        answer = await host.check_compat(wanted)
    assert (answer.compatible, list(answer.incompatibilities)) == (True, [])
    assert requirements_to_proto(requirements_from_proto(wanted)) == wanted


@pytest.mark.asyncio
async def test_on_a_host_without_tiles(world: World, tmp_path: Path) -> None:
    """Everything is listed, each with the field that is not met: features, other offsets, rules, policy, format."""
    wanted = await needed(world)
    wanted.kernel_rules, wanted.format_version, wanted.allocation_policy = "5.16", 9, 99  # type: ignore[assignment]
    config = HostConfig(default_profile="zen4", byte_limit=1000)
    async with HostServer(config, f"unix:{tmp_path}/other.sock") as server, AsyncHost(server.address) as host:
        answer = await host.check_compat(wanted)
    assert not answer.compatible
    found = {(each.kind, each.field): each for each in answer.incompatibilities}
    assert found[K.INCOMPATIBILITY_KIND_XFEATURES, "xfeatures"].xfeatures & 0x60000 == 0x60000
    opmask = found[K.INCOMPATIBILITY_KIND_LAYOUT, "layouts[3].offset"]
    assert (opmask.xfeatures, opmask.description) == (1 << 5, "OPMASK: the VM has offset 1088, this host 832")
    rest = {kind for kind, _ in found} - {K.INCOMPATIBILITY_KIND_XFEATURES, K.INCOMPATIBILITY_KIND_LAYOUT}
    assert rest == {
        K.INCOMPATIBILITY_KIND_MEMORY,
        K.INCOMPATIBILITY_KIND_KERNEL_RULES,
        K.INCOMPATIBILITY_KIND_ALLOCATION_POLICY,
        K.INCOMPATIBILITY_KIND_FORMAT_VERSION,
        K.INCOMPATIBILITY_KIND_CPUID,
    }
    assert found[K.INCOMPATIBILITY_KIND_CPUID, "cpuid_features"].description.startswith("the guests' CPUID has XFD")


@pytest.mark.asyncio
async def test_a_dynamic_feature_that_nobody_can_be_permitted(world: World) -> None:
    """arch_prctl knows a permission for tile data alone."""
    wanted = await needed(world)
    wanted.dynamic_xfeatures |= 1 << 17
    async with AsyncHost(world.server.address) as host:
        (found,) = (await host.check_compat(wanted)).incompatibilities
    assert (found.kind, found.field) == (K.INCOMPATIBILITY_KIND_PERMISSION, "dynamic_xfeatures")
    assert found.xfeatures == 1 << 17


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("field", "change"),
    [
        pytest.param("dynamic_xfeatures", {"dynamic_xfeatures": 1 << 40}, id="dynamic, but not among xfeatures"),
        pytest.param("layouts", {"xfeatures": 0x602E6, "dynamic_xfeatures": 0}, id="a layout of no feature"),
        pytest.param("vcpu_count", {"vcpu_count": 0}, id="no vCPU"),
        pytest.param("format_version", {"format_version": 0}, id="no format version"),
        pytest.param("kernel_rules", {"kernel_rules": ""}, id="no kernel rules"),
        pytest.param("allocation_policy", {"allocation_policy": 0}, id="no policy"),
    ],
)
async def test_contradictions(world: World, field: str, change: dict[str, int | str]) -> None:
    """Refused, with the field's path."""
    wanted = await needed(world)
    for name, value in change.items():
        setattr(wanted, name, value)
    async with AsyncHost(world.server.address) as host:
        with pytest.raises(HostError) as caught:
            await host.check_compat(wanted)
    assert caught.value.refusal.metadata["field"] == f"requirements.{field}"


@pytest.mark.asyncio
async def test_a_layout_of_no_bytes(world: World) -> None:
    """Refused by its index."""
    wanted = await needed(world)
    wanted.layouts[2].size = 0
    async with AsyncHost(world.server.address) as host:
        with pytest.raises(HostError, match=r"layouts\[2\]\.size"):
            await host.check_compat(wanted)


@pytest.mark.asyncio
async def test_what_host_tasks_may_take_counts(world: World) -> None:
    """Permission for the VMM's own threads makes their containers part of the bill."""
    wanted = await needed(world)
    await world.vms.RequestPermission(
        vm_pb2.RequestPermissionRequest(name="vms/a", scope=vm_pb2.PERMISSION_SCOPE_HOST, feature=18)
    )
    vm = world.server.agent.state.vms["vms/a"]
    assert requirements_of(vm).container_bytes_max == wanted.container_bytes_max + len(vm.tasks) * (10752 + 64)


def test_the_blocking_client_has_it_too() -> None:
    """The same name on both."""
    assert Host.check_compat.__doc__ == AsyncHost.check_compat.__doc__
