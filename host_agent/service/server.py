"""HostServer: the gRPC server around one HostAgent, from its socket to its end.

    async with HostServer(HostConfig(), "unix:/run/user/1000/fpstated/host.sock") as server:
        await server.wait()

Messages to the host have at most ``limits.MESSAGE_BYTES_MAX`` bytes. What the host sends is not limited: a client that
reads many whole XTILE_DATA components with one SubmitEvents raises its own limit, or asks for fewer at once.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import (
    exit_pb2,
    exit_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    migration_pb2,
    migration_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    vcpu_pb2,
    vcpu_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
    watch_pb2,
    watch_pb2_grpc,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from fpu_core.trace import CoreTracer
from host_agent.journal.durable import DurableJournal
from host_agent.journal.journal import JournalOptions
from host_agent.service.access.layer import AccessLayer
from host_agent.service.access.principal import local_principal
from host_agent.service.address import (
    AddressError,
    TcpAddress,
    UnixAddress,
    only_its_own_mode,
    parse_address,
    prepare_socket,
)
from host_agent.service.admin import AdminGrpc, AdminHttp
from host_agent.service.agent import HostAgent, host_gone
from host_agent.service.agent_log import AgentLog
from host_agent.service.clock import Clock
from host_agent.service.credentials import LiveCredentials
from host_agent.service.decode_layer import DecodeLayer, tolerant
from host_agent.service.drain import Drain, DrainState
from host_agent.service.exit_service import ExitService
from host_agent.service.fault_layer import FaultLayer
from host_agent.service.fault_service import FaultService
from host_agent.service.fault_watch import FaultWatchers
from host_agent.service.health import HealthService
from host_agent.service.host_service import HostService
from host_agent.service.interceptor import ErrorInterceptor
from host_agent.service.layers import layered
from host_agent.service.limit_layer import LimitLayer
from host_agent.service.limits import BOOKMARK_INTERVAL_S, CALL_DEADLINE_S, MESSAGE_BYTES_MAX, PATIENCE_S
from host_agent.service.metrics import HostMetrics
from host_agent.service.migration_service import MigrationService
from host_agent.service.options import ServerOptions
from host_agent.service.patience import PatienceLayer
from host_agent.service.release import ReleaseLayer
from host_agent.service.session_service import GuestSessionService
from host_agent.service.stream_age import StreamAge
from host_agent.service.task_service import TaskService
from host_agent.service.trace_layer import TraceLayer
from host_agent.service.vcpu_service import VcpuService
from host_agent.service.vm_service import VmService
from host_agent.service.watch_service import WatchService
from host_agent.state import HostConfig

_log = logging.getLogger(__name__)

#: Every service of the contract.
SERVICES: Final = tuple(
    service.full_name
    for module in (host_pb2, vm_pb2, task_pb2, vcpu_pb2, session_pb2, exit_pb2, migration_pb2, watch_pb2, fault_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)

_OPTIONS: Final = (
    # Two hosts on one port would share its calls, and each would know half of everything.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    # Clients ping every 20 to 30 s, with or without calls; a server left at its defaults would hang up on them.
    # Source: grpc/doc/keepalive.md.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A client whose machine is gone says nothing and does not read: its streams end within these, not in two hours.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Who connects and says nothing does not hold a connection for gRPC's two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
)


class HostServer:
    """A host that listens. ``agent`` is what it serves; ``address`` is where, once ``start`` has returned."""

    def __init__(  # noqa: PLR0913 -- keywords, all with defaults
        self,
        config: HostConfig,
        address: str,
        *,
        options: ServerOptions | None = None,
        allow_insecure_tcp: bool = False,
        clock: Clock | None = None,
        tracer: CoreTracer | None = None,
        call_deadline_s: float = CALL_DEADLINE_S,
        bookmark_interval_s: float = BOOKMARK_INTERVAL_S,
        patience_s: float = PATIENCE_S,
        journal: JournalOptions | None = None,
    ) -> None:
        """Read the address, the certificates, and what is in the state directory; nothing listens yet.

        Raises ``AddressError``, ``CredentialsError``, ``JournalError`` and ``OSError``.

        ``options`` is who may talk to the host, and how much; ``call_deadline_s`` is the deadline of a unary call that
        comes without one; ``bookmark_interval_s`` is how long a watcher goes without news; ``patience_s`` is how long a
        stream waits for its client to take a message; ``tracer`` hears every hardware operation. Without ``journal``
        everything is in memory; with it the host goes on with what is in there.
        """
        self._options = options or ServerOptions()
        self._listen = parse_address(
            address,
            allow_insecure_tcp=allow_insecure_tcp,
            tls=self._options.tls is not None,
            socket_mode=self._options.socket_mode,
            socket_group=self._options.socket_group,
        )
        secure = isinstance(self._listen, TcpAddress) and self._listen.secure
        self.credentials = LiveCredentials(self._options.tls) if secure and self._options.tls is not None else None
        config = replace(config, durable=journal is not None)
        durable = DurableJournal(journal, config) if journal is not None else None
        self.agent = HostAgent(config, clock=clock, tracer=tracer, journal=durable)
        self.limits = LimitLayer(self._options.peer_limits, self.agent.clock)
        self.metrics = HostMetrics(self.agent, self.limits, self.credentials)
        self._fault_watchers = FaultWatchers(self.agent.state)
        self.agent.listeners += [self.metrics, AgentLog(self.agent), self._fault_watchers]
        self._admin = AsyncExitStack()
        #: Where metrics and channelz are, once ``start`` has returned; empty for nowhere.
        self.metrics_address = self.admin_address = ""
        self.address = self._listen.target
        self._call_deadline_s = call_deadline_s
        self._bookmark_interval_s = bookmark_interval_s
        self._patience_s = patience_s
        self._is_bound = False
        self._server: grpc.aio.Server | None = None
        self._drain: Drain | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen and serve.

        Raises ``AddressError`` where the socket is in use or cannot be had, ``Refused`` where the history forbids what
        the configuration wants.
        """
        assert self._server is None, "a server starts once"
        try:
            await self._start()
        except BaseException:
            self.agent.end()
            raise

    async def _start(self) -> None:
        if isinstance(self._listen, UnixAddress):
            prepare_socket(self._listen)
        self.agent.start()
        server = grpc.aio.server(options=_OPTIONS)
        healths = await self._add_services(self._layered(server))
        try:
            await self._start_admin(healths)  # before the socket is there: one that was bound is not given back
            self._bind(server)
        except AddressError:
            await self._admin.aclose()
            await server.stop(None)
            raise
        await server.start()
        self._server = server
        _log.info("serving on %s", self.address)

    def _layered(self, server: grpc.aio.Server) -> grpc.aio.Server:
        """What services are added to, so that their methods are inside all layers, in the order of ``layers.py``."""
        local = local_principal(self._options.socket_identity)
        return layered(
            server,
            PatienceLayer(self._patience_s),
            TraceLayer(),
            self.metrics.layer,
            ErrorInterceptor(self._call_deadline_s),
            DecodeLayer(),
            ReleaseLayer(self.agent.journal),
            AccessLayer(self.agent.state, None if self.credentials is not None else local),
            self.limits,
            *([FaultLayer(self.agent)] if self.agent.state.config.faults else []),
            deserializer=tolerant,
        )

    async def _start_admin(self, healths: health.aio.HealthServicer) -> None:
        """Open the listeners for whoever runs the host."""
        options = self._options
        if options.metrics:
            http = AdminHttp(self.metrics.registry, self._serves, options.metrics, anywhere=options.metrics_anywhere)
            self.metrics_address = (await self._admin.enter_async_context(http)).address
        if options.admin:
            self.admin_address = (await self._admin.enter_async_context(AdminGrpc(healths, options.admin))).address

    def _serves(self) -> bool:
        return self._drain is not None and self._drain.state is DrainState.SERVING

    async def _add_services(self, server: grpc.aio.Server) -> health.aio.HealthServicer:
        agent = self.agent
        healths = HealthService()
        self._drain = drain = Drain(agent, healths)
        host_service = HostService(agent, drain, call_deadline_s=self._call_deadline_s)
        age = StreamAge(agent.clock, self._options.stream_max_age_s)
        exit_service = ExitService(agent, age, bookmark_interval_s=self._bookmark_interval_s)
        watch_service = WatchService(agent, age, bookmark_interval_s=self._bookmark_interval_s)
        host_pb2_grpc.add_HostServiceServicer_to_server(host_service, server)
        vm_pb2_grpc.add_VmServiceServicer_to_server(VmService(agent), server)
        task_pb2_grpc.add_TaskServiceServicer_to_server(TaskService(agent), server)
        vcpu_pb2_grpc.add_VcpuServiceServicer_to_server(VcpuService(agent), server)
        session_pb2_grpc.add_GuestSessionServiceServicer_to_server(GuestSessionService(agent, age), server)
        exit_pb2_grpc.add_ExitServiceServicer_to_server(exit_service, server)
        fault_pb2_grpc.add_FaultServiceServicer_to_server(FaultService(agent, self._fault_watchers, age), server)
        migration_pb2_grpc.add_MigrationServiceServicer_to_server(MigrationService(agent), server)
        watch_pb2_grpc.add_WatchServiceServicer_to_server(watch_service, server)
        await self._add_health(healths, server)
        if self._options.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            # Not enable_server_reflection(): what it adds depends on the class of the server that it is given.
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
                reflection.aio.ReflectionServicer(names), server
            )
        return healths

    async def _add_health(self, healths: health.aio.HealthServicer, server: grpc.aio.Server) -> None:
        """Each service has its own status; one that is off does not serve."""
        off = set() if self.agent.state.config.faults else {"fpstate.fault.v1.FaultService"}
        status = health_pb2.HealthCheckResponse
        for name in SERVICES:
            await healths.set(name, status.NOT_SERVING if name in off else status.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(healths, server)

    def _bind(self, server: grpc.aio.Server) -> None:
        try:
            port = self._bound(server)
        except RuntimeError as error:
            raise AddressError(f"{self._listen.target}: {error}") from error
        self._is_bound = True
        if isinstance(self._listen, TcpAddress):
            self.address = TcpAddress(self._listen.host, port, secure=self._listen.secure).target

    def _bound(self, server: grpc.aio.Server) -> int:
        match self._listen:
            case UnixAddress() as address:
                with only_its_own_mode(address):
                    return server.add_insecure_port(address.target)
            case TcpAddress() as address if self.credentials is not None:
                return server.add_secure_port(address.target, self.credentials.server)
            case TcpAddress() as address:
                return server.add_insecure_port(address.target)

    @property
    def port(self) -> int:
        """The TCP port it listens on; 0 on a unix socket."""
        return int(self.address.rpartition(":")[2]) if isinstance(self._listen, TcpAddress) else 0

    async def wait(self) -> None:
        """Return when the server has stopped."""
        assert self._server is not None, "start it first"
        await self._server.wait_for_termination()

    async def drained(self) -> None:
        """Return when a drain that somebody began is over; at once where nobody has."""
        assert self._drain is not None, "start it first"
        await self._drain.done()

    async def drain_and_stop(self, grace_s: float = 5.0) -> None:
        """Health NOT_SERVING, DRAINING on the streams, ``grace_s`` for their clients to go, then stop."""
        assert self._drain is not None, "start it first"
        await self._drain.begin(grace_s)
        await self._drain.done()
        await self.stop(grace_s)

    async def stop(self, grace_s: float = 0.0) -> None:
        """End every call after ``grace_s`` seconds at most and close the socket. A second call changes nothing."""
        if self._server is None:
            self.agent.end()
            return
        if self._drain is not None:
            self._drain.cancel()
        self._fault_watchers.finish(host_gone())
        await self._server.stop(grace_s)
        await self._admin.aclose()
        if isinstance(self._listen, UnixAddress) and self._is_bound:
            self._is_bound = False  # from here on it may be another's
            _unlink(self._listen.path)
        self.agent.end()  # whoever waits for the directory finds the address free


def _unlink(path: Path) -> None:
    """GRPC removes the socket itself; where it did not, nobody is to find it."""
    with suppress(FileNotFoundError):
        path.unlink()


async def serve(config: HostConfig, address: str, *, allow_insecure_tcp: bool = False) -> HostServer:
    """Start a host on ``address`` and return it; the caller waits for it and stops it."""
    server = HostServer(config, address, allow_insecure_tcp=allow_insecure_tcp)
    await server.start()
    return server
