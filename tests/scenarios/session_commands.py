"""``session``, ``keep-alive`` and ``close-session``: a VMM takes charge of vCPUs, and gives them up."""

from __future__ import annotations

from host_agent.commands import CloseSession, KeepAlive, OpenSession
from host_agent.sessions import Opened
from host_agent.state import SessionRecord
from tests.scenarios.block import ScenarioError
from tests.scenarios.operands import Words, duration_ns, number
from tests.scenarios.world import HOUR_NS, World


def session(world: World, words: Words) -> None:
    """Open a session for the named vCPUs, or for all there are."""
    wanted = words.key("vcpus")
    names = [world.vcpu_name(text) for text in wanted.split(",")] if wanted else _every_vcpu(world)
    lease = words.key("lease")
    command = OpenSession(
        client_name=words.key("client", "vmm"),
        vcpus=tuple(names),
        explicit=words.flag("explicit"),
        lease_ns=duration_ns(lease) if lease else HOUR_NS,
    )
    words.end()
    opened: Opened = world.apply(command)
    world.sessions.append(opened.session)
    for each in opened.vcpus:
        pending = f", event {each.pending.seq} is pending" if each.pending is not None else ""
        where = f"session {len(world.sessions)}, epoch {opened.session.epoch}, has {world.short(each.vcpu)}"
        world.lanes.user(where, f"next is event {each.next_seq}, incarnation {each.incarnation}{pending}")


def _every_vcpu(world: World) -> list[str]:
    return [f"{vm.name}/vcpus/{index}" for vm in world.state.vms.values() for index in vm.kvm.vcpus]


def keep_alive(world: World, words: Words) -> None:
    """Start the lease of a session anew."""
    record = session_of(world, words.peek() and words.take("a session"))
    words.end()
    world.apply(KeepAlive(session=record.name, epoch=record.epoch))
    world.lanes.user("lease renewed")


def close_session(world: World, words: Words) -> None:
    """End a session; its vCPUs leave the guest and stay."""
    record = session_of(world, words.peek() and words.take("a session"))
    words.end()
    world.apply(CloseSession(session=record.name, epoch=record.epoch))
    world.lanes.user("session closed")


def session_of(world: World, label: str) -> SessionRecord:
    """A session by its number in this file, the newest for none."""
    if not world.sessions:
        raise ScenarioError("there is no session: open one with `session`")
    nr = number(label) if label else len(world.sessions)
    if not 1 <= nr <= len(world.sessions):
        raise ScenarioError(f"expected a session 1..{len(world.sessions)}, got {nr}")
    return world.sessions[nr - 1]
