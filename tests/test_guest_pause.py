"""PAUSE and RESUME from the host to real and scripted guests: carried out, acknowledged, and what holds meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from fpstate.v1 import exit_pb2

from fpstated.client import Host, Session, connect, create_guest, open_session
from fpstated.testing_host import HostUnderTest, host_on_a_thread
from guest_agent.gate import Gate
from guest_agent.kvm import GrowthOrder, GuestProgram, GuestReport, install_kick_signal
from guest_agent.kvm_agent import KvmAgent
from guest_agent.report import Outcome
from guest_agent.run import shipped_script
from guest_agent.script import ScriptReport
from guest_agent.script_agent import ScriptAgent
from guest_agent.script_parser import load_script
from host_agent.state import HostConfig
from tests.kvm_model import needs_kvm
from tests.test_guest_session import decide, until

KINDS = [pytest.param("kvm", marks=needs_kvm), "script"]


@pytest.fixture
def server() -> Iterator[HostUnderTest]:
    """A host on a socket of its own, with faults, checking every invariant after every command."""
    with host_on_a_thread(HostConfig(faults=True, check_invariants=True)) as running:
        yield running


@pytest.fixture
def host(server: HostUnderTest) -> Iterator[Host]:
    """The client of that host."""
    with connect(server.address) as client:
        yield client


class Running:
    """A guest of one kind in a thread of its own."""

    def __init__(self, kind: str, session: Session, vcpu: str) -> None:
        self.report: GuestReport | ScriptReport | None = None
        self.agent: KvmAgent | ScriptAgent
        if kind == "kvm":
            install_kick_signal()
            self.agent = KvmAgent(session, vcpu, GuestProgram(order=GrowthOrder.XFD_ARMED_FIRST))
        else:
            script = load_script(shipped_script(GrowthOrder.XFD_ARMED_FIRST))
            self.agent = ScriptAgent(session, vcpu, script)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.report = self.agent.run()

    def join(self) -> Outcome:
        """Wait for the end."""
        self._thread.join()
        assert self.report is not None
        return self.report.outcome


def open_exit(host: Host) -> str:
    """Wait for the exit of the guest."""
    until(lambda: bool(host.list_exits(unresolved=True)))
    return host.list_exits(unresolved=True)[0].name


def kinds_acknowledged(server: HostUnderTest, session: Session) -> bool:
    """Whether no directive waits."""
    return not server.machine.state.sessions[session.key.name].directives


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_guest_waits_and_goes_on(server: HostUnderTest, host: Host, kind: str) -> None:
    """PAUSE is acknowledged while the vCPU is outside; with RESUME and the retry it goes on, its tiles as loaded."""
    vcpu = create_guest(host, "a")
    host.arm_fault("fpstate.realloc.alloc", errno=12, vcpu=vcpu, fail_nth=1)
    with open_session(host.channel, vcpus=[vcpu]) as session:
        running = Running(kind, session, vcpu)
        name = open_exit(host)
        paused = decide(host, name, pause=exit_pb2.Pause())
        assert paused.state == exit_pb2.EXIT_STATE_PAUSED
        until(lambda: kinds_acknowledged(server, session))
        assert running.report is None
        decide(host, name, retry=exit_pb2.Retry())
        assert running.join() is Outcome.VERIFIED


@pytest.mark.parametrize("kind", KINDS)
def test_the_outcome_alone_does_not_end_a_pause(
    server: HostUnderTest, host: Host, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final outcome may come before RESUME: the guest stands there until that has come too."""
    held = threading.Event()
    which = KvmAgent if kind == "kvm" else ScriptAgent
    carry_out = which._carry_out

    def late(agent: object, directive: object) -> None:
        if getattr(directive, "kind").name == "RESUME":  # noqa: B009 -- of either agent
            held.wait()
        carry_out(agent, directive)  # type: ignore[arg-type]

    monkeypatch.setattr(which, "_carry_out", late)
    vcpu = create_guest(host, "a")
    host.arm_fault("fpstate.realloc.alloc", errno=12, vcpu=vcpu, fail_nth=1)
    with open_session(host.channel, vcpus=[vcpu]) as session:
        running = Running(kind, session, vcpu)
        name = open_exit(host)
        decide(host, name, pause=exit_pb2.Pause())
        until(lambda: kinds_acknowledged(server, session))
        decide(host, name, retry=exit_pb2.Retry())
        gate = running.agent._guest if isinstance(running.agent, KvmAgent) else running.agent.gate
        until(lambda: gate.waits)  # it has its outcome, and does not go on
        assert not kinds_acknowledged(server, session)
        assert running.report is None
        held.set()
        assert running.join() is Outcome.VERIFIED
        until(lambda: kinds_acknowledged(server, session))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["kill", "reset", "stop"])
def test_what_ends_a_paused_guest(server: HostUnderTest, host: Host, kind: str, end: str) -> None:
    """STOP and RESET end the pause and the guest; so does its own agent."""
    vcpu = create_guest(host, "a")
    host.arm_fault("fpstate.realloc.alloc", errno=12, vcpu=vcpu, fail_nth=1)
    with open_session(host.channel, vcpus=[vcpu]) as session:
        running = Running(kind, session, vcpu)
        name = open_exit(host)
        decide(host, name, pause=exit_pb2.Pause())
        until(lambda: kinds_acknowledged(server, session))
        match end:
            case "kill":
                decide(host, name, kill_vcpu=exit_pb2.KillVcpu())
            case "reset":
                host.reset_vm("vms/a")
            case _:
                running.agent.stop()
        assert running.join() is Outcome.STOPPED


def test_a_gate_that_was_opened_for_good_stays_open() -> None:
    """Who stops a guest is not overtaken by a pause."""
    gate = Gate()
    gate.close()
    gate.open(for_good=True)
    gate.close()
    gate.wait()
    assert not gate.waits
