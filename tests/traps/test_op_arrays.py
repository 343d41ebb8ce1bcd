"""Where a batch of operations fails, or its awaiter is cancelled, grpc.aio leaks the array of them: some 80 bytes each.

Source: grpc/grpc#43360: 222,000 arrays in 12 days. Guard: few streams that last, and no read that is cancelled: giving
up a wait for an outcome gives up a future of ours.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.traps.soak import grown_kib


def test_bare(note: Callable[..., None]) -> None:
    """A thousand cancelled reads, after as many for warming up."""
    kib = grown_kib("bare-reads", 2000)
    note("a cancelled read leaks", there=kib > 30, how=f"{kib} KiB in 1,000")


def test_waits_that_are_given_up_cost_nothing() -> None:
    """Two thousand of them: a tenth of the bound would be what one operation's array each costs."""
    assert grown_kib("our-waits", 4000) <= 1600
