"""A block: a tour through every method, some hundred inputs from several lanes at once, and the checks behind them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

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
    vm_pb2,
    vm_pb2_grpc,
)
from google.protobuf.field_mask_pb2 import FieldMask

from guest_agent.outcome import InstructionOutcome
from host_agent.journal.recovery import recover
from host_agent.journal.store import Store
from host_agent.state import HostConfig
from tests.fuzz.inputs import CANCEL, CUT, Corpus, Input, Inputs
from tests.fuzz.messages import FieldPath
from tests.fuzz.sender import Answer, Sender
from tests.fuzz.tour import IDENTITIES, OUTSIDERS, stops
from tests.fuzz.vocabulary import Vocabulary
from tests.live.healthy import healthy_outcomes
from tests.live.host import LiveHost

LANES: Final = 6
#: Descriptors that a block may leave open above those there were before: the journal's and a snapshot's, for a while.
_FDS_SPARE: Final = 4
_OPEN_SESSION: Final = "/fpstate.v1.GuestSessionService/OpenSession"
_IDLE: Final = (
    'fpstated_calls_under_way{kind="call"}',
    'fpstated_calls_under_way{kind="stream"}',
    "fpstated_attach_streams",
    "fpstated_exit_watchers",
)


@dataclass
class Findings:
    """What was found: each entry says what and where. ``crash`` is the input that brought the first crash, if any."""

    crashes: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    crash: Input | None = None

    def __bool__(self) -> bool:
        return bool(self.crashes or self.violations or self.leaks)


@dataclass
class Block:
    """One block on a host, under a name that no block before it had. ``sent`` is in the order in which calls began.

    A block of outsiders has the roles of guests alone, and a guest that does nothing wrong runs all the while.
    """

    host: LiveHost
    name: str
    reference: Sequence[InstructionOutcome]
    outsiders: bool = False
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    corpus: Corpus = field(default_factory=Corpus)
    findings: Findings = field(default_factory=Findings)
    sent: list[Input] = field(default_factory=list)
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost_opens: int = 0

    async def tour(self) -> None:
        """Call every method as it should be called; what the host accepts is what is changed later."""
        sender = Sender(self.host, self.vocabulary)
        self.vocabulary.latest["once"] = self.name
        for stop in stops():
            sent = Input(stop.role, stop.path, stop.messages(self.vocabulary))
            answer = await self._send(sender, sent, keep=True)
            if answer.code is not grpc.StatusCode.OK and not stop.may_be_refused and not _watches(stop.path):
                why = f"{answer.code.name}: {answer.text}"
                self.findings.violations.append(f"the tour: {stop.role} {stop.path} {stop.requests}: {why}")
        await sender.close()

    async def fuzz(self, rng: Random, count: int, fields: list[tuple[str, FieldPath]]) -> None:
        """Send ``count`` inputs from all lanes."""
        roles = OUTSIDERS if self.outsiders else tuple(IDENTITIES)
        lanes = [Inputs(Random(rng.random()), self.vocabulary, self.corpus, fields, roles) for _ in range(LANES)]
        done = asyncio.gather(*(self._lane(inputs, count // LANES) for inputs in lanes))
        while self.outsiders and not done.done():
            await asyncio.to_thread(self._check_healthy)
        await done

    async def _lane(self, inputs: Inputs, count: int) -> None:
        sender = Sender(self.host, self.vocabulary)
        for _ in range(count):
            if self.findings.crashes:
                break
            sent = inputs.next()
            self.sent.append(sent)
            await self._send(sender, sent)
        await sender.close()

    async def _send(self, sender: Sender, sent: Input, *, keep: bool = False) -> Answer:
        answer = await sender.send(sent)
        code = "ENDED_WHILE_WRITING" if answer.text == "Internal error from Core" else answer.code.name
        self.codes[sent.path.rpartition("/")[2], code] += 1
        if answer.crash:
            self.findings.crashes.append(f"{sent.path} as {sent.role}: {answer.crash}")
            self.findings.crash = self.findings.crash or sent
        if answer.code is grpc.StatusCode.OK or (keep and not answer.crash):
            self.corpus.add(sent)
        if sent.path == _OPEN_SESSION and (sent.ending in (CANCEL, CUT) or answer.code is not grpc.StatusCode.OK):
            self.lost_opens += 1
        return answer

    async def replay(self, inputs: Sequence[Input]) -> None:
        """Send these, one after the other."""
        sender = Sender(self.host, self.vocabulary)
        for sent in inputs:
            self.sent.append(sent)
            await self._send(sender, sent)
        await sender.close()

    # -- afterwards ----------------------------------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Take away what the inputs have made: VMs, sessions, limits, faults."""
        async with self.host.channel("operator/tidy") as channel:
            await _tidy(channel, self.vocabulary)

    def check(self, fds: int) -> None:
        """The process, its log, its invariants, what it holds, and a guest that does nothing wrong."""
        found = self.findings
        if not self.host.alive:
            found.crashes.append("the process has ended")
            return
        found.crashes += [f"the log: {line[:2000]}" for line in self.host.complaints()]
        if found.crashes:
            return
        self._check_leaks(fds)
        found.violations += _violations(self.host)
        self._check_healthy()

    def _check_healthy(self) -> None:
        try:
            if healthy_outcomes(self.host) != self.reference:
                self.findings.violations.append("the healthy guest had other outcomes than when it was alone")
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is not what a healthy guest gets
            self.findings.violations.append(f"the healthy guest: {error!r}")

    def _check_leaks(self, fds: int) -> None:
        wanted = dict.fromkeys(_IDLE, 0.0) | {"fpstated_vms": 0.0, "fpstated_sessions": float(self.lost_opens)}
        over = self.host.settled(wanted | {"process_open_fds": float(fds + _FDS_SPARE)})
        self.findings.leaks += [f"{name} is {value:g}" for name, value in over.items()]


def _watches(path: str) -> bool:
    """Whether it goes on until its deadline, however well it is."""
    return path.rpartition("/")[2].startswith("Watch")


def _violations(host: LiveHost) -> list[str]:
    """Bring the machine back out of its journal, while the host runs, and check every invariant of it."""
    try:
        with Store(host.state_dir, write=False) as store, store.reading():
            recover(store, HostConfig()).machine.check()
    except Exception as error:  # noqa: BLE001 -- a journal that does not replay is a violation as well
        return [f"what the journal leads to: {error!r}"]
    return []


async def _tidy(channel: grpc.aio.Channel, vocabulary: Vocabulary) -> None:
    hosts, vms = host_pb2_grpc.HostServiceStub(channel), vm_pb2_grpc.VmServiceStub(channel)
    sessions = session_pb2_grpc.GuestSessionServiceStub(channel)
    await hosts.UpdateHost(host_pb2.UpdateHostRequest(update_mask=FieldMask(paths=["byte_limit"])))
    await fault_pb2_grpc.FaultServiceStub(channel).ResetFaults(fault_pb2.ResetFaultsRequest())
    for session, epoch in vocabulary.sessions.items():
        await _maybe(sessions.CloseSession(session_pb2.CloseSessionRequest(session=session, epoch=epoch)))
    exits = exit_pb2_grpc.ExitServiceStub(channel)
    for control, epoch in vocabulary.controls.items():
        await _maybe(exits.ReleaseControl(exit_pb2.ReleaseControlRequest(control=control, epoch=epoch)))
    migrations = migration_pb2_grpc.MigrationServiceStub(channel)
    for each in (await migrations.ListMigrations(migration_pb2.ListMigrationsRequest(page_size=1000))).migrations:
        abort = migration_pb2.AbortMigrationRequest(name=each.name, ownership_epoch=each.ownership_epoch, force=True)
        await _maybe(migrations.AbortMigration(abort))
    while True:
        listed = await vms.ListVms(vm_pb2.ListVmsRequest(page_size=1000))
        for vm in listed.vms:
            await vms.DeleteVm(vm_pb2.DeleteVmRequest(name=vm.name, force=True))
        if not listed.vms:
            return


async def _maybe(call: Any) -> None:  # noqa: ANN401 -- a call has no public type
    try:
        await call
    except grpc.aio.AioRpcError:
        return
