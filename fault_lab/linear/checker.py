"""Linearizability: is there an order of the operations that keeps who was before whom, and that the model allows?

The search is Wing and Gong's (1993) with Lowe's memory of what was seen (2017): a configuration is which operations
have taken effect and what state that has led to, and none is looked at twice.

    A |--------|              an operation may take effect anywhere between its call and its return;
         B |-------|          next is any that was called before the first return of those that are left
                 C |---...    one that never returned may take effect at any time after its call, or never

An operation that changes nothing and is right where the search stands is taken at once: whatever is possible with it
later is possible with it now. The limit is in steps, so a history has the same verdict on any machine.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

#: Configurations that a check looks at before it says that it does not know.
STEPS: Final = 200_000
_NEVER: Final = 1 << 62

Answer = Literal["ok", "violation", "unknown"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. ``call`` and ``ret`` are numbers that are there once in a history; without ``ret`` it is open.

    ``what`` is what the model takes, with what was answered. ``reads``: it never changes a state.
    """

    call: int
    ret: int | None
    what: Hashable
    reads: bool = False
    process: str = ""


class Model(Protocol):
    """What is legal one after the other. States are values that can be hashed."""

    @property
    def initial(self) -> Any:  # noqa: ANN401 -- a model has states of its own
        """Where it begins."""

    def step(self, state: Any, what: Any) -> Sequence[Any]:  # noqa: ANN401
        """Return every state that ``what`` may lead to with the answer that it has; none where it cannot be."""

    def unanswered(self, what: Any) -> Any:  # noqa: ANN401
        """Return ``what`` before anybody has heard its answer; None where it would change nothing."""


@dataclass(frozen=True, slots=True)
class Counterexample:
    """The shortest beginning that no order explains: ``prefix`` ends with the return of ``last``.

    ``states`` are those that were possible just before it. Empty where the limit did not let them all be found.
    """

    prefix: tuple[Operation, ...]
    last: Operation
    states: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a check. ``why`` says why nothing is known."""

    answer: Answer
    operations: int
    steps: int
    why: str = ""
    counterexample: Counterexample | None = None


class LimitError(Exception):
    """The search has taken as many steps as it may."""


def check(operations: Iterable[Operation], model: Model, limit: int = STEPS) -> Verdict:
    """Check a history; what a violation needs to be understood is searched for with the same limit."""
    ops = sorted(operations, key=lambda each: each.call)
    search = Search(ops, model, limit)
    try:
        fits = next(search.ends(), None) is not None
    except LimitError:
        return Verdict(
            "unknown", len(ops), search.steps, f"no order was found in {limit} steps, nor that there is none"
        )
    if fits:
        return Verdict("ok", len(ops), search.steps)
    return Verdict("violation", len(ops), search.steps, counterexample=_shortest(ops, model, limit))


class Search:
    """One search through the orders of a history. ``steps`` counts the configurations looked at."""

    def __init__(self, operations: Sequence[Operation], model: Model, limit: int) -> None:
        self._step = model.step
        self._initial = model.initial
        self._limit = limit
        self.steps = 0
        closed = [(each.call, each.ret, each.what, each.reads) for each in operations]
        self._closed = [(call, ret, what, reads) for call, ret, what, reads in closed if ret is not None]
        self._open = [(each.call, each.what) for each in operations if each.ret is None and not each.reads]

    def ends(self) -> Iterator[Any]:
        """Yield each state in which every operation that returned has taken effect. Raises ``LimitError``."""
        # A configuration: closed operations below `low` have taken effect, and those of `mask` counted from there on;
        # open ones of `taken`; the state.
        first = (0, 0, 0, self._initial)
        seen = {first}
        stack = [first]
        while stack:
            config = stack.pop()
            self.steps += 1
            if self.steps > self._limit:
                raise LimitError
            if config[0] == len(self._closed):
                yield config[3]
            for found in self._next(config):
                if found not in seen:
                    seen.add(found)
                    stack.append(found)

    def _next(self, config: tuple[int, int, int, Any]) -> list[tuple[int, int, int, Any]]:
        """Where one more operation leads, the most promising last: what returns first is tried first."""
        low, mask, taken, state = config
        closed, step = self._closed, self._step
        found, first_return, nr = [], _NEVER, low
        candidates = []
        while nr < len(closed):
            call, ret, what, reads = closed[nr]
            if call > first_return:
                break
            if not mask >> nr - low & 1:
                if reads and state in (after := step(state, what)):
                    return [(*_with(low, mask, nr), taken, state)]
                candidates.append((ret, nr, after if reads else None, what))
                first_return = min(first_return, ret)
            nr += 1
        for at, (call, what) in enumerate(self._open):
            if call > first_return:
                break
            if not taken >> at & 1:
                found += [(low, mask, taken | 1 << at, each) for each in step(state, what) if each != state]
        candidates.sort(key=lambda each: each[:2], reverse=True)
        for _ret, nr, known, what in candidates:
            where = _with(low, mask, nr)
            found += [(*where, taken, each) for each in (known if known is not None else step(state, what))]
        return found


def _with(low: int, mask: int, nr: int) -> tuple[int, int]:
    """One more has taken effect: the mask never begins with ones."""
    mask |= 1 << nr - low
    ones = (mask ^ mask + 1).bit_length() - 1
    return low + ones, mask >> ones


# -- what is wrong -----------------------------------------------------------------------------------------------------


def _shortest(ops: Sequence[Operation], model: Model, limit: int) -> Counterexample | None:
    """Bisect the returns: a beginning of what can be explained can be explained. None where the limit is in the way."""
    returns = sorted(each.ret for each in ops if each.ret is not None)
    fits, fails = -1, len(returns) - 1
    try:
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if next(Search(_until(ops, model, returns[middle]), model, limit).ends(), None) is None:
                fails = middle
            else:
                fits = middle
    except LimitError:
        return None
    cut = returns[fails]
    last = next(each for each in ops if each.ret == cut)
    before = _until(ops, model, cut - 1)
    try:
        states = tuple(dict.fromkeys(Search(before, model, limit).ends()))
    except LimitError:
        states = ()
    return Counterexample(tuple(each for each in ops if each.call <= cut), last, states)


def _until(ops: Sequence[Operation], model: Model, cut: int) -> list[Operation]:
    """The history as it was at ``cut``: what returned later was open then, and nobody had heard its answer."""
    kept = []
    for each in ops:
        if each.call > cut:
            break
        if each.ret is not None and each.ret <= cut:
            kept.append(each)
        elif (what := model.unanswered(each.what)) is not None:
            kept.append(Operation(each.call, None, what, each.reads, each.process))
    return kept
