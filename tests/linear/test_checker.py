"""The search itself, on a register: classics, all orders of small histories, the shortest prefix, the limit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fault_lab.linear.checker import Operation, Search, check
from tests.linear.register import Register, What, by_all_orders


def history(text: str) -> list[Operation]:
    """Operations a line, as they are drawn: ``|`` begins and ends one, ``>`` is open; then what it is."""
    made = []
    for nr, line in enumerate(line for line in text.splitlines() if line.strip()):
        drawn, _, said = line.partition("  ")
        begin, end = line.index("|"), drawn.rfind("|")
        words = said.split()
        what: What = (words[0], *(int(word) if word.isdigit() else word == "yes" for word in words[1:]))
        open_ = drawn.rstrip().endswith(">")
        # Columns are times; the line tells apart what begins or ends in the same one.
        made.append(Operation(begin * 100 + nr, None if open_ else end * 100 + nr, what, what[0] == "read"))
    return made


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        pytest.param(
            "|-----|...  write 1\n..|-|.....  read 0", "ok", id="a read beside a write may see what was before"
        ),
        pytest.param("|-----|...  write 1\n..|-|.....  read 1", "ok", id="or what it writes"),
        pytest.param("|-|.......  write 1\n....|-|...  read 0", "violation", id="a read behind a write sees it"),
        pytest.param(
            "|---------|..  write 1\n.|-|.......  read 1\n.....|-|...  read 0",
            "violation",
            id="what was seen stays seen",
        ),
        pytest.param("|-|......  write 1\n|.......>  write 2\n....|-|..  read 2", "ok", id="what is open may happen"),
        pytest.param("|-|......  write 1\n|.......>  write 2\n....|-|..  read 1", "ok", id="or not"),
        pytest.param(
            "|-|..........  write 1\n....|-|......  read 2\n........|..>  write 2",
            "violation",
            id="an answer does not speak of the future",
        ),
        pytest.param(
            "|......>......  write 2\n|-|..........  write 1\n...|-|.......  read 2\n.......|-|...  read 1",
            "violation",
            id="what is open happens once",
        ),
        pytest.param(
            "|----|..  cas 0 1 yes\n|----|..  cas 0 2 yes", "violation", id="of two that swap the same one wins"
        ),
        pytest.param("|----|..  cas 0 1 yes\n|----|..  cas 0 2 no", "ok", id="and the other hears so"),
        pytest.param("", "ok", id="nothing has happened"),
    ],
)
def test_classics(text: str, answer: str) -> None:
    """A drawn history has the verdict that the textbooks give it."""
    assert check(history(text), Register()).answer == answer


whats = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 2)),
    st.tuples(st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("cas"), st.integers(0, 2), st.integers(0, 2), st.booleans()),
)


@st.composite
def small(draw: st.DrawFn) -> list[Operation]:
    """Up to six operations with any overlaps, some of them open."""
    made = draw(st.lists(whats, max_size=6))
    points = draw(st.permutations(range(2 * len(made))))
    operations = []
    for nr, heard in enumerate(made):
        call, ret = sorted(points[2 * nr : 2 * nr + 2])
        open_ = draw(st.integers(0, 4)) == 0 and heard[0] != "read"
        # Nobody has heard what came of one that is open.
        what: What = (*heard[:3], None) if open_ and heard[0] == "cas" else heard
        operations.append(Operation(call, None if open_ else ret, what, what[0] == "read"))
    return operations


@settings(max_examples=300, deadline=None)
@given(small())
def test_the_verdict_is_that_of_all_orders(operations: list[Operation]) -> None:
    """The search finds an order exactly where trying all of them does."""
    assert (check(operations, Register()).answer == "ok") == by_all_orders(operations)


def _until(operations: list[Operation], cut: int) -> list[Operation]:
    """What had been heard by ``cut``, told by this test itself."""
    known = []
    for each in operations:
        if each.ret is not None and each.ret <= cut:
            known.append(each)
        elif each.call <= cut and not each.reads:
            assert isinstance(each.what, tuple)
            what = (*each.what[:3], None) if each.what[0] == "cas" else each.what
            known.append(Operation(each.call, None, what))
    return known


@settings(max_examples=200, deadline=None)
@given(small())
def test_the_prefix_is_the_shortest_and_its_states_are_all(operations: list[Operation]) -> None:
    """What is shown cannot be explained, and with one return less it can; exactly the states that were possible."""
    verdict = check(operations, Register())
    if verdict.answer == "ok":
        return
    found = verdict.counterexample
    assert found is not None
    assert found.last.ret is not None
    assert not by_all_orders(_until(operations, found.last.ret))
    before = _until(operations, found.last.ret - 1)
    assert by_all_orders(before)
    end = 1000
    for value in range(3):
        ends_there = by_all_orders([*before, Operation(end, end + 1, ("read", value), reads=True)])
        assert (value in found.states) == ends_there


def test_the_limit_is_in_steps() -> None:
    """Ten writes at once and a read of none of them: with few steps nothing is known, with enough it is wrong."""
    writes = [Operation(nr, 100 + nr, ("write", nr + 1)) for nr in range(10)]
    history = [*writes, Operation(200, 201, ("read", 50), reads=True)]
    verdict = check(history, Register(), limit=100)
    assert (verdict.answer, verdict.why) == ("unknown", "no order was found in 100 steps, nor that there is none")
    assert check(history, Register()).answer == "violation"
    search = Search(history, Register(), 1 << 20)
    assert not list(search.ends())
    assert search.steps == 1 + _subsets_with_a_last(10)


def _subsets_with_a_last(count: int) -> int:
    """Which have taken effect, and which of those came last: a configuration of plain writes is no more than that."""
    return sum(len([nr for nr in range(count) if which >> nr & 1]) for which in range(1, 1 << count))
