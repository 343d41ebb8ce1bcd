"""What a campaign is to do: one plan, a mode, a range of seeds, in blocks. Fixed when it begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from fpstate.fault.v1 import plan_pb2
from google.protobuf import json_format

from fault_lab.campaign.block import Work
from fault_lab.plan.canonical import plan_hash
from fault_lab.plan.check import problems
from fault_lab.search.run import mode_name
from fault_lab.sim.run import SIM_VERSION
from fpstated._version import __version__
from host_agent.journal.record import RULES_VERSION

API: Final = "fpstate.campaign.v1"
#: Modes in which a run follows from its seed alone, so that any process can make it.
SEED_MODES: Final = (
    plan_pb2.SEARCH_MODE_RANDOM,
    plan_pb2.SEARCH_MODE_SWARM,
    plan_pb2.SEARCH_MODE_PCT,
)
SEEDS_MAX: Final = 1_000_000_000
BLOCK_MAX: Final = 100_000


class OutlineError(ValueError):
    """What cannot be a campaign; the text names the field and what was expected."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A campaign before it is run. Raises ``OutlineError``."""

    plan: plan_pb2.Plan
    mode: plan_pb2.SearchMode.ValueType
    depth: int
    first: int
    last: int
    block: int

    def __post_init__(self) -> None:
        """A range that can be done, by a mode that needs nothing but a seed."""
        if self.mode not in SEED_MODES:
            known = ", ".join(mode_name(mode) for mode in SEED_MODES)
            raise OutlineError(
                f"mode: expected one of {known}, whose runs follow from their seeds, got {mode_name(self.mode)}"
            )
        if not (0 <= self.first <= self.last and self.last < 1 << 64 and self.runs <= SEEDS_MAX):
            raise OutlineError(
                f"seeds: expected A..B with A <= B, at most {SEEDS_MAX} seeds, got {self.first}..{self.last}"
            )
        if not 1 <= self.block <= BLOCK_MAX:
            raise OutlineError(f"block: expected 1 to {BLOCK_MAX} seeds, got {self.block}")

    @property
    def runs(self) -> int:
        """How many runs it has."""
        return self.last - self.first + 1

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return -(-self.runs // self.block)

    def work(self) -> Iterator[Work]:
        """The blocks, in the order of their seeds."""
        text = self.plan.SerializeToString(deterministic=True)
        for nr in range(self.blocks):
            first = self.first + nr * self.block
            yield Work(text, self.mode, self.depth, nr, first, min(self.block, self.last - first + 1))

    def to_json(self) -> dict[str, Any]:
        """As it is kept, with the versions that its figures are of."""
        return {
            "api": API,
            "version": __version__,
            "sim": SIM_VERSION,
            "rules": RULES_VERSION,
            "plan_sha256": plan_hash(self.plan),
            "mode": mode_name(self.mode),
            "depth": self.depth,
            "first": self.first,
            "last": self.last,
            "block": self.block,
            "plan": json_format.MessageToDict(self.plan),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Outline:
        """Read it back. Raises ``OutlineError`` for what this release did not write."""
        for name, mine in (("api", API), ("sim", SIM_VERSION), ("rules", RULES_VERSION)):
            if found.get(name) != mine:
                raise OutlineError(f"{name}: expected {mine!r}, as this release has it, got {found.get(name)!r}")
        modes = {mode_name(mode): mode for mode in SEED_MODES}
        try:
            plan = json_format.ParseDict(found["plan"], plan_pb2.Plan())
            read = cls(plan, modes[found["mode"]], *(int(found[name]) for name in ("depth", "first", "last", "block")))
        except (KeyError, TypeError, json_format.ParseError) as error:
            raise OutlineError(f"expected what a campaign is to do: {error!r}") from error
        if plan_hash(plan) != found.get("plan_sha256") or problems(plan):
            raise OutlineError("plan_sha256: expected the hash of the plan beside it")
        return read
