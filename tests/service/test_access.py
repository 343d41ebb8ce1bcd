"""Who may call what: the whole matrix against a live host with mutual TLS, and what is whose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from fpstate.v1 import exit_pb2, exit_pb2_grpc, host_pb2, host_pb2_grpc, session_pb2, vcpu_pb2, vm_pb2, vm_pb2_grpc
from google.protobuf import descriptor_pool

from fault_lab.injection.action import Drop
from host_agent.commands import ArmFault
from host_agent.service.access.matrix import MATRIX, ROLES, Grant, grant, matrix_table
from host_agent.service.access.ownership import resources
from host_agent.service.access.principal import IdentityError, Role, local_principal, principal_of
from host_agent.service.clock import ManualClock
from host_agent.service.options import ServerOptions
from host_agent.service.server import SERVICES, HostServer
from host_agent.state import HostConfig
from tests.service.calls import every_method, method_descriptor, refusal, request_for
from tests.service.certificates import Certificates
from tests.service.world import World, error_info, read

DOCS = Path(__file__).parents[2] / "docs" / "security.md"
IDENTITIES = {
    Role.GUEST: "guest/a",
    Role.CONTROLLER: "controller/c",
    Role.OPERATOR: "operator/o",
    Role.FAULT: "fault/f",
}
SERVED = (*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One CA for all tests."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest_asyncio.fixture
async def secured(certificates: Certificates) -> AsyncIterator[HostServer]:
    """A host on TCP with mutual TLS."""
    options = ServerOptions(tls=certificates.host)
    config = HostConfig(faults=True, check_invariants=True)
    async with HostServer(config, "localhost:0", options=options, clock=ManualClock()) as server:
        server.agent.submit(ArmFault(point="mine.step", action=Drop()))  # so that WatchFaults has something to say
        yield server


#: Called last: others would find another host after them.
_LAST = ("/AcquireControl", "/DrainHost", "/ResetFaults")


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_method_of_every_service_is_in_the_matrix() -> None:
    """A call that is added is a call that somebody decides about."""
    pool = descriptor_pool.Default()
    served = {f"/{name}/{method.name}" for name in SERVED for method in pool.FindServiceByName(name).methods}
    assert served == set(MATRIX)


def test_a_method_nobody_knows_is_refused_to_everybody() -> None:
    """What is not in the matrix is not given."""
    assert {grant("/fpstate.v1.HostService/Reboot", role) for role in Role} == {Grant.NO}


def test_the_docs_show_the_matrix() -> None:
    """docs/security.md holds the table as the code has it: python -m tools.gen_docs."""
    assert matrix_table() in DOCS.read_text()


def test_what_a_role_has_for_its_own_names_something() -> None:
    """Every call that is given for one's own has a field by which that is told."""
    for path, grants in MATRIX.items():
        if Grant.OWN in grants.values():
            assert list(resources(request_for(path, "vms/a"))), path
            assert not list(resources(type(request_for(path, "vms/a"))())) or path.endswith("/CreateVm"), path


# -- the whole matrix, live --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.value)
async def test_the_matrix_holds_on_a_live_host(role: Role, secured: HostServer, certificates: Certificates) -> None:
    """Every method with this role's certificate: refused with the reason of the registry, or let through the gate."""
    wrong = []
    async with certificates.channel(secured.address, IDENTITIES[role]) as channel:
        for path in sorted(every_method(), key=lambda each: each.endswith(_LAST)):
            answer = await refusal(channel, path, request_for(path, "vms/a"))
            gate = answer[1] in ("ROLE_NOT_ALLOWED", "NOT_OWNER", "PRINCIPAL_UNKNOWN")
            expected = grant(path, role) is Grant.NO
            if gate is not expected or (expected and answer != (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")):
                wrong.append((path, answer))
    assert wrong == []


@pytest.mark.asyncio
async def test_a_guest_reaches_its_own_alone(secured: HostServer, certificates: Certificates) -> None:
    """Every call that a guest has for its own is refused for another VM, existing or not."""
    wrong = []
    async with certificates.channel(secured.address, "guest/a") as channel:
        for path in every_method():
            if grant(path, Role.GUEST) is not Grant.OWN or "/hello" in path:
                continue
            request = request_for(path, "vms/b")
            if not [name for name in resources(request) if name.startswith("vms/")]:
                continue  # sessions have a test of their own
            answer = await refusal(channel, path, request)
            if answer != (grpc.StatusCode.PERMISSION_DENIED, "NOT_OWNER"):
                wrong.append((path, answer))
    assert wrong == []


@pytest.mark.asyncio
async def test_a_guest_that_names_nothing_is_refused(secured: HostServer, certificates: Certificates) -> None:
    """A list over everything is not a guest's."""
    async with certificates.channel(secured.address, "guest/a") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await exit_pb2_grpc.ExitServiceStub(channel).ListExits(exit_pb2.ListExitsRequest())
    assert error_info(caught.value).reason == "NOT_OWNER"
    assert dict(error_info(caught.value).metadata) == {
        "method": "/fpstate.v1.ExitService/ListExits",
        "principal": "test.example/guest/a",
        "resource": "",
    }


@pytest.mark.asyncio
async def test_a_session_is_its_openers(secured: HostServer, certificates: Certificates) -> None:
    """Two guests of one VM: neither can speak in the other's session, by stream or by call; the operator can."""
    async with AsyncExitStack() as stack:
        worlds = {}
        for identity in ("guest/a", "guest/b/vms/a", "operator/o"):
            channel = await stack.enter_async_context(certificates.channel(secured.address, identity))
            worlds[identity] = World(secured, ManualClock(), channel)
        guest = await worlds["guest/a"].guest()
        thief = worlds["guest/b/vms/a"]
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await thief.sessions.SubmitEvents(guest.request(guest.enable_tiles()))
        stream = thief.sessions.Attach()
        await stream.write(guest.hello())
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            await read(stream)
        keep_alive = session_pb2.KeepAliveRequest(session=guest.session, epoch=guest.epoch)
        await worlds["operator/o"].sessions.KeepAlive(keep_alive)
        own = worlds["guest/a"].sessions.Attach()
        await own.write(guest.hello())
        assert (await read(own)).HasField("attached")
        own.cancel()
    assert (
        error_info(unary.value).metadata["resource"] == error_info(streamed.value).metadata["resource"] == guest.session
    )
    assert {error_info(each.value).reason for each in (unary, streamed)} == {"NOT_OWNER"}


@pytest.mark.asyncio
async def test_a_guest_may_have_several_vms(secured: HostServer, certificates: Certificates) -> None:
    """The certificate names them, and then its own name is no VM of its."""
    async with certificates.channel(secured.address, "guest/vmm/vms/b/c") as channel:
        world = World(secured, ManualClock(), channel)
        for vm in ("b", "c"):
            await world.vm(vm)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.vm("vmm")
        answer = await world.vcpus.ListVcpus(vcpu_pb2.ListVcpusRequest(parent="vms/b"))
    assert error_info(caught.value).reason == "NOT_OWNER"
    assert len(answer.vcpus) == 1


# -- certificates ------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_without_a_certificate_there_is_no_connection(secured: HostServer, certificates: Certificates) -> None:
    """TLS is mutual: the CA alone does not get anybody in, and neither does plaintext."""
    one_sided = grpc.ssl_channel_credentials(root_certificates=(certificates.folder / "ca.pem").read_bytes())
    for channel in (grpc.aio.secure_channel(secured.address, one_sided), grpc.aio.insecure_channel(secured.address)):
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await host_pb2_grpc.HostServiceStub(channel).GetHostInfo(host_pb2.GetHostInfoRequest(), timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.asyncio
async def test_a_stranger_s_ca_does_not_count(secured: HostServer, tmp_path: Path, certificates: Certificates) -> None:
    """The same identity from another CA is nobody."""
    stranger = Certificates(tmp_path / "stranger").client("operator/o")
    credentials = grpc.ssl_channel_credentials(
        (certificates.folder / "ca.pem").read_bytes(), stranger.key.read_bytes(), stranger.cert.read_bytes()
    )
    async with grpc.aio.secure_channel(secured.address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await host_pb2_grpc.HostServiceStub(channel).GetHostInfo(host_pb2.GetHostInfoRequest(), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.asyncio
async def test_a_certificate_without_a_role_is_unauthenticated(secured: HostServer, certificates: Certificates) -> None:
    """The host's own certificate is good for TLS, and is no client's."""
    files = certificates.host
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes())
    async with grpc.aio.secure_channel(secured.address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await host_pb2_grpc.HostServiceStub(channel).GetHostInfo(host_pb2.GetHostInfoRequest())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert error_info(caught.value).reason == "PRINCIPAL_UNKNOWN"


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("spiffe://d/king/x", id="a role that is none"),
        pytest.param("spiffe://d/guest", id="no name"),
        pytest.param("spiffe://d/guest/", id="an empty name"),
        pytest.param("spiffe://d/guest/..", id="a path that climbs"),
        pytest.param("spiffe://D/guest/a", id="a trust domain in capitals"),
        pytest.param("spiffe:///guest/a", id="no trust domain"),
        pytest.param("spiffe://d/operator/o/vms/a", id="VMs of somebody who is no guest"),
        pytest.param("spiffe://d/guest/a/vms/", id="no VM behind vms"),
        pytest.param("spiffe://d/guest/a/vms/A", id="no VM id"),
        pytest.param("spiffe://d/guest/a/vms/a?b", id="a query"),
        pytest.param("https://d/guest/a", id="another scheme"),
    ],
)
def test_what_is_no_identity_is_refused(uri: str) -> None:
    """And the text says what is one."""
    with pytest.raises(IdentityError, match="expected"):
        principal_of(uri)


def test_the_vms_of_a_guest() -> None:
    """Those it names, or the one of its own name."""
    assert principal_of("spiffe://d/guest/a").vms == {"vms/a"}
    assert principal_of("spiffe://d/guest/x/vms/a/b").vms == {"vms/a", "vms/b"}
    assert principal_of("spiffe://d/guest/x").id == "d/guest/x"
    assert local_principal("operator/local").vms == frozenset()


@pytest.mark.asyncio
async def test_a_socket_has_the_identity_that_it_is_given(tmp_path: Path) -> None:
    """Whoever opens this one is a guest, with a guest's calls and VMs."""
    options = ServerOptions(socket_identity="guest/a")
    async with (
        HostServer(HostConfig(), f"unix:{tmp_path}/s", options=options) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        vms = vm_pb2_grpc.VmServiceStub(channel)
        await vms.CreateVm(vm_pb2.CreateVmRequest(vm_id="a"))
        with pytest.raises(grpc.aio.AioRpcError) as lists:
            await vms.ListVms(vm_pb2.ListVmsRequest())
        with pytest.raises(grpc.aio.AioRpcError) as other:
            await vms.CreateVm(vm_pb2.CreateVmRequest(vm_id="b"))
    assert error_info(lists.value).reason == "ROLE_NOT_ALLOWED"
    assert error_info(other.value).reason == "NOT_OWNER"


def test_a_method_has_its_descriptor() -> None:
    """What the tests above send is made from the contract itself."""
    assert method_descriptor("/fpstate.v1.GuestSessionService/Attach").client_streaming
