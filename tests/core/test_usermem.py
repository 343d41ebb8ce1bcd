"""User memory: what is mapped, what is present, and what an access brings in, at every edge.

Two pages and a half from 0x10000 on; the last stretch ends in the middle of a page.
"""

from __future__ import annotations

import pytest

from fpu_core.usermem import PAGE_BYTES, UserMemory, pages_of

BASE = 0x10000
SIZE = 2 * PAGE_BYTES + 2048
END = BASE + SIZE
FIRST = BASE // PAGE_BYTES


def _memory(*absent: int) -> UserMemory:
    memory = UserMemory(BASE, SIZE)
    memory.absent = {FIRST + page for page in absent}
    return memory


@pytest.mark.parametrize(
    ("address", "length", "pages"),
    [
        pytest.param(BASE, 1, [0], id="the first byte"),
        pytest.param(BASE, PAGE_BYTES, [0], id="a whole page"),
        pytest.param(BASE, PAGE_BYTES + 1, [0, 1], id="and one byte of the next"),
        pytest.param(BASE + PAGE_BYTES - 1, 1, [0], id="the last byte of a page"),
        pytest.param(BASE + PAGE_BYTES - 1, 2, [0, 1], id="two bytes in two pages"),
        pytest.param(BASE + PAGE_BYTES - 1, 0, [0], id="nothing lies where it would begin"),
    ],
)
def test_pages(address: int, length: int, pages: list[int]) -> None:
    """The pages that a stretch touches."""
    assert [page - FIRST for page in pages_of(address, length)] == pages


@pytest.mark.parametrize(
    ("address", "length", "mapped"),
    [
        pytest.param(BASE, SIZE, True, id="all of it"),
        pytest.param(BASE - 1, 1, False, id="the byte in front"),
        pytest.param(BASE - 1, 2, False, id="a stretch that begins in front"),
        pytest.param(END - 1, 1, True, id="the last byte"),
        pytest.param(END - 1, 2, False, id="a stretch that ends behind"),
        pytest.param(END, 1, False, id="the byte behind"),
    ],
)
def test_mapped(address: int, length: int, mapped: bool) -> None:
    """A copy works where all of it is mapped, and else writes nothing: EFAULT."""
    memory = _memory()
    assert memory.mapped(address, length) is mapped
    assert (memory.copy_from_user(address, length) is not None) is mapped
    assert memory.copy_to_user(address, b"\1" * length) is mapped
    assert (1 in memory.data) is mapped
    assert len(memory.data) == SIZE


@pytest.mark.parametrize(
    ("absent", "address", "length", "readable"),
    [
        pytest.param([], BASE, 64, 64, id="all present"),
        pytest.param([], BASE, SIZE + 64, SIZE, id="no more than there is"),
        pytest.param([], BASE - 1, 64, 0, id="in front"),
        pytest.param([], END - 1, 64, 1, id="the last byte"),
        pytest.param([], END, 64, 0, id="behind"),
        pytest.param([0], BASE, 64, 0, id="the first page is absent"),
        pytest.param([0], BASE + 100, 64, 0, id="in the middle of an absent page"),
        pytest.param([1], BASE, SIZE, PAGE_BYTES, id="up to the absent page"),
        pytest.param([1], BASE + PAGE_BYTES - 64, 64, 64, id="a stretch that ends at it"),
        pytest.param([1], BASE + PAGE_BYTES - 64, 65, 64, id="a stretch that ends a byte later"),
        pytest.param([1, 2], BASE + 1, SIZE, PAGE_BYTES - 1, id="the first of two"),
        pytest.param([0], BASE + PAGE_BYTES, 64, 64, id="an absent page in front does not count"),
    ],
)
def test_how_much_can_be_used_without_a_fault(absent: list[int], address: int, length: int, readable: int) -> None:
    """From the address to whatever comes first: the length, an absent page, the end."""
    memory = _memory(*absent)
    assert memory.readable_bytes(address, length) == readable
    assert memory.absent == {FIRST + page for page in absent}, "looking brings nothing in"


@pytest.mark.parametrize(
    ("address", "length", "still_absent", "there"),
    [
        pytest.param(BASE, 1, [1, 2], True, id="one byte: its page"),
        pytest.param(BASE, PAGE_BYTES, [1, 2], True, id="a page, and not the next"),
        pytest.param(BASE + PAGE_BYTES - 1, 2, [2], True, id="two bytes in two pages"),
        pytest.param(BASE + PAGE_BYTES, SIZE, [0], False, id="beyond the end: what there is"),
    ],
)
def test_faulting_in(address: int, length: int, still_absent: list[int], there: bool) -> None:
    """Exactly the pages that are touched come in, also where the last of them does not exist."""
    memory = _memory(0, 1, 2)
    assert memory.fault_in(address, length) is there
    assert memory.absent == {FIRST + page for page in still_absent}
