"""The swap: bytes and MSR writes counted, pairs per second beside the floor, and what a hundred thousand vCPUs cost."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from statistics import median

from bench.report import Row, counted, paired
from bench.world import SwapWorld, swap_world
from fpu_core.swap import swap_in, swap_out

VCPUS = 100_000
FEW = 100
ROUNDS = 5
SEED = 20211016


def rows(fraction: int = 1) -> Iterator[Row]:
    """Every figure about the swap, with one ``fraction``-th of the vCPUs."""
    yield from _counts()
    gc.collect()
    many = swap_world(VCPUS // fraction, armed=True)
    gc.freeze()
    pairs, floor, few, few_floor = _rates(many)
    yield paired(
        "swap pairs, 100,000 vCPUs, random order",
        "pairs/s",
        pairs,
        floor,
        at_least=1.0 / 1.6,
        note="floor: the look-up and two assignments. The floor's loop is so short that the processor overlaps its "
        "cache misses from one pair to the next; a swap is too long for that, and pays each miss in full.",
    )
    yield paired("swap pairs, 100 vCPUs, random order", "pairs/s", few, few_floor, at_least=None)
    cost = Row(
        "cost of a pair, 100,000 vCPUs over 100",
        "ratio",
        few / pairs,
        few_floor / floor,
        (few / pairs) / (few_floor / floor),
        "none set; reference: the floor's",
        ok=True,
    )
    yield cost
    gc.unfreeze()


def _counts() -> Iterator[Row]:
    world = swap_world(1, armed=True)
    counters = world.cpu.counters
    before = counters.bytes_saved + counters.bytes_restored
    writes = counters.xfd_writes
    for _ in range(1000):
        _pair(world, 0)
    moved = counters.bytes_saved + counters.bytes_restored - before
    yield counted("bytes copied by 1,000 pairs with nothing live", "bytes", moved, at_most=0)
    yield counted("XFD writes by 1,000 pairs with equal XFD", "writes", counters.xfd_writes - writes, at_most=0)
    differs = swap_world(1, armed=False)
    writes = differs.cpu.counters.xfd_writes
    for _ in range(1000):
        _pair(differs, 0)
    needless = differs.cpu.counters.xfd_writes - writes - 2000
    yield counted("needless XFD writes by 1,000 pairs with different XFD", "writes", needless, at_most=0)


def _pair(world: SwapWorld, index: int) -> None:
    swap_in(world.fpu, world.guests[index])
    swap_out(world.fpu, world.guests[index])


def _rates(many: SwapWorld) -> tuple[float, float, float, float]:
    """Median rates of pairs and floor, over all vCPUs and over a few, the four interleaved round by round.

    In time of the processor: nobody else on the machine is waited for.
    """
    print(f"bench: swap order seed {SEED}; python -m bench swap repeats it")
    count = len(many.guests)
    order = list(range(count))
    random.Random(SEED).shuffle(order)
    few = [index % FEW for index in order]
    kinds: tuple[tuple[Callable[[SwapWorld, list[int]], None], list[int]], ...] = (
        (_swaps, order),
        (_floor, order),
        (_swaps, few),
        (_floor, few),
    )
    seconds: list[list[float]] = [[], [], [], []]
    for _ in range(ROUNDS):
        for at, (run, indices) in enumerate(kinds):
            start = time.process_time()
            run(many, indices)
            seconds[at].append(time.process_time() - start)
    pairs, floor, few_pairs, few_floor = (count / median(each) for each in seconds)
    return pairs, floor, few_pairs, few_floor


def _swaps(world: SwapWorld, order: list[int]) -> None:
    fpu, guests = world.fpu, world.guests
    for index in order:
        guest = guests[index]
        swap_in(fpu, guest)
        swap_out(fpu, guest)


def _floor(world: SwapWorld, order: list[int]) -> None:
    """What no swap in Python can be faster than: find the vCPU, point the thread at its container, and back."""
    fpu, guests = world.fpu, world.guests
    own = fpu.fpstate
    for index in order:
        guest = guests[index]
        fpu.fpstate = guest.fpstate  # type: ignore[assignment]  # a test for None would be no floor any more
        fpu.fpstate = own
