"""HostService: what the host is, can do and holds, and how it goes away."""

from __future__ import annotations

from importlib import metadata
from typing import Final

from fpstate.v1 import host_pb2, host_pb2_grpc

from fpu_core.cpuid import builtin_profile_names
from fpu_core.rules import KERNEL_RULES
from host_agent.capabilities import capabilities
from host_agent.commands import SetHostLimit
from host_agent.image_form import IMAGE_BYTES_MAX
from host_agent.kvm.policy import ALLOCATION_POLICIES
from host_agent.service.agent import HostAgent
from host_agent.service.drain import Drain, DrainState
from host_agent.service.errors import field_invalid
from host_agent.service.layers import Context
from host_agent.service.limits import (
    CALL_DEADLINE_S,
    CREDITS_MAX,
    EVENTS_PER_BATCH_MAX,
    GRACE_MAX_S,
    LEASE_MIN_NS,
    MESSAGE_BYTES_MAX,
    PAGE_SIZE_MAX,
)
from host_agent.service.translate.fields import NS_PER_S, duration, duration_ns, header, paths, request_id, text
from host_agent.service.translate.vm import POLICY_VALUES
from host_agent.state import HostConfig, HostState

_DRAIN_STATES: Final[dict[DrainState, host_pb2.DrainState.ValueType]] = {
    DrainState.SERVING: host_pb2.DRAIN_STATE_SERVING,
    DrainState.DRAINING: host_pb2.DRAIN_STATE_DRAINING,
    DrainState.DRAINED: host_pb2.DRAIN_STATE_DRAINED,
}


class HostService(host_pb2_grpc.HostServiceServicer):
    """The host. ``call_deadline_s`` is what a unary call without a deadline gets."""

    def __init__(self, agent: HostAgent, drain: Drain, *, call_deadline_s: float = CALL_DEADLINE_S) -> None:
        self._agent = agent
        self._drain = drain
        self._call_deadline_s = call_deadline_s

    async def GetHostInfo(self, request: host_pb2.GetHostInfoRequest, context: Context) -> host_pb2.GetHostInfoResponse:
        """What the host is, can do and holds."""
        state = self._agent.state
        return host_pb2.GetHostInfoResponse(
            header=header(state),
            protocol_version="fpstate.v1",
            version=metadata.version("fpstated"),
            capabilities=capabilities(state.config),
            profiles=builtin_profile_names(),
            policies=sorted(POLICY_VALUES[name] for name in ALLOCATION_POLICIES),
            kernel_rules=_default_first(state.config.default_kernel_rules),
            limits=_limits(state.config, self._call_deadline_s),
            usage=_usage(state),
            drain_state=_DRAIN_STATES[self._drain.state],
            settings=_settings(state),
        )

    async def UpdateHost(self, request: host_pb2.UpdateHostRequest, context: Context) -> host_pb2.UpdateHostResponse:
        """Change the host's settings; the same change again changes nothing."""
        paths("update_mask", request.update_mask, ("byte_limit",))
        byte_limit = request.settings.byte_limit if request.settings.HasField("byte_limit") else None
        self._agent.submit(SetHostLimit(byte_limit=byte_limit, request_id=request_id(request.request_id)))
        state = self._agent.state
        return host_pb2.UpdateHostResponse(header=header(state), settings=_settings(state))

    async def DrainHost(self, request: host_pb2.DrainHostRequest, context: Context) -> host_pb2.DrainHostResponse:
        """Take the host out of service; answers at once."""
        grace_s = duration_ns("grace", request.grace) / NS_PER_S
        if grace_s > GRACE_MAX_S:
            raise field_invalid("grace", f"at most {GRACE_MAX_S:g} s", f"{grace_s:g} s")
        target = text("resume_target", request.resume_target, longest=1024)
        await self._drain.begin(grace_s, resume_target=target, request_id=request_id(request.request_id))
        return host_pb2.DrainHostResponse(
            header=header(self._agent.state), drain_state=_DRAIN_STATES[self._drain.state]
        )


def _default_first(default: str) -> list[str]:
    return [default, *(name for name in KERNEL_RULES if name != default)]


def _limits(config: HostConfig, call_deadline_s: float) -> host_pb2.HostLimits:
    """``request_id_window`` is absent: ids are remembered by number, not by time."""
    return host_pb2.HostLimits(
        cpus=config.cpus,
        vms_max=config.max_vms,
        vcpus_per_vm_max=config.max_vcpus_per_vm,
        sessions_max=config.max_sessions,
        events_per_batch_max=EVENTS_PER_BATCH_MAX,
        credits_max=CREDITS_MAX,
        message_bytes_max=MESSAGE_BYTES_MAX,
        page_size_max=PAGE_SIZE_MAX,
        lease_min=duration(LEASE_MIN_NS),
        lease_max=duration(config.max_lease_ns),
        lease_default=duration(config.default_lease_ns),
        exit_deadline=duration(config.exit_deadline_ns),
        call_deadline=duration(round(call_deadline_s * NS_PER_S)),
        outcomes_per_vcpu_max=config.max_outcomes,
        tasks_per_vm_max=config.max_tasks_per_vm,
        request_ids_max=config.max_request_ids,
        settled_exits_max=config.max_resolved_exits,
        decisions_max=config.max_decisions,
        image_bytes_max=IMAGE_BYTES_MAX,
        migration_deadline=duration(config.migration_deadline_ns),
        migrations_max=config.max_migrations,
    )


def _usage(state: HostState) -> host_pb2.HostUsage:
    account = state.allocator.host
    return host_pb2.HostUsage(
        vms=len(state.vms),
        vcpus=sum(len(vm.kvm.vcpus) for vm in state.vms.values()),
        sessions=len(state.sessions),
        bytes_used=account.used_bytes,
        byte_limit=account.limit_bytes,
        open_exits=len(state.exits),
    )


def _settings(state: HostState) -> host_pb2.HostSettings:
    return host_pb2.HostSettings(byte_limit=state.allocator.host.limit_bytes)
