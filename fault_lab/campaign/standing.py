"""How a campaign stands: what its blocks add up to, in whatever order they were done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fault_lab.campaign.block import Block, Failure
from fault_lab.campaign.outline import Outline


@dataclass(slots=True)
class Standing:
    """The sums. ``failures`` has one entry a signature: the failure with the lowest seed, and how many there are."""

    outline: Outline
    blocks: dict[int, Block] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    runs: int = 0
    steps: int = 0
    fired: int = 0
    unknown: int = 0
    broken: int = 0
    seen: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, outline: Outline, blocks: Iterable[Block]) -> Standing:
        """Add up blocks."""
        standing = cls(outline)
        for block in blocks:
            standing.add(block)
        return standing

    def add(self, block: Block) -> None:
        """Count a block that is done."""
        self.blocks[block.nr] = block
        self.runs += block.runs
        self.steps += block.steps
        self.fired += block.fired
        self.unknown += block.unknown
        self.broken += block.broken
        self.seen |= block.seen
        for failure in block.failures:
            known = self.failures.get(failure.signature)
            first = failure if known is None or failure.seed < known.seed else known
            self.failures[failure.signature] = replace(first, count=failure.count + (known.count if known else 0))

    @property
    def failed(self) -> int:
        """How many runs violated something."""
        return sum(failure.count for failure in self.failures.values())

    @property
    def unseen(self) -> list[str]:
        """What was to be seen and was not, so far."""
        return [name for name in self.outline.plan.checks.sometimes if name not in self.seen]

    @property
    def done(self) -> bool:
        """Whether no block is left."""
        return len(self.blocks) == self.outline.blocks

    @property
    def error(self) -> str:
        """The first traceback of the simulator itself; empty for none."""
        return next((block.error for _nr, block in sorted(self.blocks.items()) if block.error), "")

    @property
    def digest(self) -> str:
        """SHA-256 over the histories of all blocks that are done: the same, wherever and in whatever order they ran."""
        digests = hashlib.sha256()
        for _nr, block in sorted(self.blocks.items()):
            digests.update(block.histories.encode())
        return digests.hexdigest()

    @property
    def line(self) -> str:
        """The figures."""
        return (
            f"campaign: {self.runs} of {self.outline.runs} runs, steps: {self.steps}, violations: {self.failed} "
            f"({len(self.failures)} distinct), faults fired: {self.fired}, histories {self.digest[:12]}"
        )
