"""What an event costs on a host with a hundred thousand vCPUs, beside one with a hundred, by turns."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench.pairs import Figures
from bench.report import Row, by_turns_row
from bench.traffic import BATCH
from host_agent.commands import Command, CreateVcpu, CreateVm, OpenSession, SubmitBatch
from host_agent.events import EventKind, GuestEvent, Rdmsr, RegisterWrite, Wrmsr, Xsetbv
from host_agent.machine import HostMachine
from host_agent.state import HostConfig, SessionRecord

MANY: Final = 100_000
FEW: Final = 100
#: Batches of a block, and pairs of blocks.
BATCHES: Final = 8
PAIRS: Final = 60
SEED: Final = 20211016
_KINDS: Final[tuple[EventKind, ...]] = (Xsetbv(0, 7), Wrmsr(0x1C4, 0), Rdmsr(0x1C4), RegisterWrite(1, 0, bytes(16)))


def rows(fraction: int = 1) -> Iterator[Row]:
    """The one figure, with one ``fraction``-th of the vCPUs."""
    print(f"bench: vCPU order seed {SEED}; python -m bench vcpus repeats it")
    many, few = (Guests.on(_machine(), "a", count) for count in (MANY // fraction, FEW))
    figures = Figures()
    pairs = max(2, PAIRS // fraction)
    figures.alternate(many.block, few.block, pairs=pairs)
    yield by_turns_row(
        f"an event at {MANY // fraction:,} vCPUs, over one at {FEW}",
        "us",
        figures.pairs(),
        at_most=1.5,
        note="vCPUs in random order, one event each: nearly every event switches the vCPU's thread in, and its guest.",
    )


def _machine() -> Callable[[Command], Any]:
    machine = HostMachine(HostConfig())

    def do(command: Command) -> object:
        reply = machine.apply(command, 0)
        machine.take_effects()
        return reply

    return do


@dataclass(slots=True)
class Guests:
    """vCPUs of one VM and one session over them, each of which has run once. ``do`` is who carries commands out."""

    do: Callable[[Command], Any]
    session: SessionRecord
    order: Iterator[int]
    names: list[str]
    next_seq: list[int]

    @classmethod
    def on(cls, do: Callable[[Command], Any], vm_id: str, count: int) -> Guests:
        """Make them, and have each run an event, which makes its thread."""
        do(CreateVm(vm_id=vm_id))
        for index in range(count):
            do(CreateVcpu(vm=f"vms/{vm_id}", index=index))
        names = [f"vms/{vm_id}/vcpus/{index}" for index in range(count)]
        opened = do(OpenSession(client_name="bench", vcpus=tuple(names)))
        shuffled = list(range(count))
        random.Random(SEED).shuffle(shuffled)
        made = cls(do, opened.session, itertools.cycle(shuffled), names, [1] * count)
        for _ in range(count // BATCH + 1):
            do(made.batch())
        return made

    def block(self) -> float:
        """Microseconds of the processor an event: nobody else is waited for."""
        batches = [self.batch() for _ in range(BATCHES)]
        begin_s = time.process_time()
        for batch in batches:
            self.do(batch)
        return (time.process_time() - begin_s) / (BATCHES * BATCH) * 1e6

    def batch(self) -> SubmitBatch:
        """The next events; each says that what its vCPU had before was received."""
        indices = [next(self.order) for _ in range(BATCH)]
        received = tuple((self.names[index], self.next_seq[index] - 1) for index in dict.fromkeys(indices))
        events = tuple(self._event(index) for index in indices)
        return SubmitBatch(session=self.session.name, epoch=self.session.epoch, events=events, received=received)

    def _event(self, index: int) -> GuestEvent:
        seq = self.next_seq[index]
        self.next_seq[index] += 1
        return GuestEvent(self.names[index], seq, _KINDS[(seq + index) % len(_KINDS)])
