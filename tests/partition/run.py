"""A run: the processes, rounds of trouble, and what has to be true at the end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

from fpstate.v1 import exit_pb2

from guest_agent.event import RegisterRead
from guest_agent.outcome import Done
from guest_agent.session import open_session
from tests.partition.process import LineProcess
from tests.partition.troubles import Troubles, Verdict
from tests.partition.world import COUNTING, EXITING, NODES, World


class Partition:
    """One run of so many rounds."""

    def __init__(self, rounds: int, seed: int, *, proxies: bool = False) -> None:
        self._proxies = proxies
        self.verdict = Verdict()
        self.acknowledged = self.decisions = 0
        self.rounds = 0
        self._wanted = rounds
        self._rng = Random(seed)

    def run(self) -> None:
        """Run it."""
        with tempfile.TemporaryDirectory(prefix="fpstated-partition-") as folder:
            world = World(Path(folder), proxies=self._proxies)
            try:
                reason = f" ({world.no_namespaces})" if world.no_namespaces else ""
                print(f"through {world.network.kind}{reason}", flush=True)
                self._start(world)
                self._troubles(world)
                self._judge(world)
            finally:
                world.close()

    def _start(self, world: World) -> None:
        for node in NODES[2:]:
            world.start(node)
        for guest in world.guests():
            if not guest.advances():
                raise RuntimeError(f"{guest.name} did not start: {guest.lost} {guest.last_words}")

    def _troubles(self, world: World) -> None:
        kinds = list(Troubles(world, self.verdict, self._rng).kinds().items())
        order: list[int] = []
        while self.rounds < self._wanted and not self.verdict.wrong:
            if not order:
                order = self._rng.sample(range(len(kinds)), len(kinds))
            name, trouble = kinds[order.pop()]
            print(f"round {self.rounds + 1}: {name}", flush=True)
            trouble()
            self.rounds += 1

    def _judge(self, world: World) -> None:
        """Every guest ends; its vCPU holds what it was acknowledged; each exit was decided once; the journal holds."""
        for guest in world.guests():
            self._end(guest)
            self.acknowledged += guest.acked
        with world.operator() as client:
            for node in COUNTING:
                self._holds(world.processes[node], client.channel)
            exits = client.list_exits(f"vms/{EXITING}")
        self._decided_once(world.processes[EXITING], exits)
        self.verdict.wrong += [f"the log: {line[:1000]}" for line in world.host.complaints()]
        if world.host.stop():
            self.verdict.wrong.append("the host did not stop in peace")
        try:
            print(world.verified())
        except RuntimeError as error:
            self.verdict.wrong.append(str(error))

    def _end(self, guest: LineProcess) -> None:
        status = guest.stop() if guest.alive else guest.ended()
        if status:
            self.verdict.wrong.append(f"{guest.name} ended with {status}: {guest.lost} {guest.last_words}")

    def _holds(self, guest: LineProcess, channel: object) -> None:
        vcpu = f"vms/{guest.name}/vcpus/0"
        with open_session(channel, vcpus=[vcpu], client_name="judge") as session:  # type: ignore[arg-type]
            outcome = session.vcpu(vcpu).submit(RegisterRead(2, 0, 8))
        found = int.from_bytes(outcome.data, "little") if isinstance(outcome, Done) else -1
        if not guest.acked <= found <= guest.acked + 1:
            self.verdict.lose(f"{guest.name} was acknowledged {guest.acked}, its vCPU has {found}")

    def _decided_once(self, guest: LineProcess, exits: list[exit_pb2.Exit]) -> None:
        """An exit for each event and a decision for each exit, of the first generation; the last may be undecided."""
        settled = [each for each in exits if each.state == exit_pb2.EXIT_STATE_RESOLVED]
        self.decisions = len(settled)
        for each in settled:
            if each.generation != 1 or each.result != exit_pb2.EXIT_RESULT_INJECTED_GP or not each.decided_by:
                self.verdict.wrong.append(f"{each.name}: generation {each.generation}, result {each.result}")
        if not guest.acked <= len(settled) <= guest.acked + 1 or len(exits) - len(settled) > 1:
            said = f"{guest.acked} events were settled for the guest, {len(settled)} of {len(exits)} exits at the host"
            self.verdict.lose(said)
