"""The smallest model there is, a register that is written, read and compared; and what all orders of a history say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from fault_lab.linear.checker import Operation

#: ("write", value), ("read", value) or ("cas", old, new, done); the last is None where nobody has heard.
What = tuple[object, ...]


@dataclass(frozen=True)
class Register:
    """It begins with 0."""

    initial: int = 0

    def step(self, state: int, what: What) -> Sequence[int]:
        """One operation."""
        match what:
            case ("write", int(value)):
                return (value,)
            case ("read", value):
                return (state,) if value == state else ()
            case ("cas", old, int(new), done):
                swaps = state == old
                return (new if swaps else state,) if done in (None, swaps) else ()
            case _:
                raise AssertionError(what)

    def unanswered(self, what: What) -> What | None:
        """Before anybody has heard."""
        match what:
            case ("read", *_):
                return None
            case ("cas", old, new, _):
                return ("cas", old, new, None)
            case _:
                return what


def by_all_orders(operations: Sequence[Operation]) -> bool:
    """Whether some order of all that returned, and of some that did not, keeps who was before whom and is legal."""
    closed = [each for each in operations if each.ret is not None]
    open_ = [each for each in operations if each.ret is None]
    return any(
        _keeps(order) and _legal(order)
        for count in range(len(open_) + 1)
        for some in combinations(open_, count)
        for order in permutations([*closed, *some])
    )


def _keeps(order: Sequence[Operation]) -> bool:
    return not any(
        later.ret is not None and later.ret < earlier.call
        for nr, earlier in enumerate(order)
        for later in order[nr + 1 :]
    )


def _legal(order: Sequence[Operation]) -> bool:
    states: set[int] = {0}
    for each in order:
        assert isinstance(each.what, tuple)
        states = {after for state in states for after in Register().step(state, each.what)}
    return bool(states)
