"""The index of deadlines says what a look at every record says."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from host_agent.deadlines import Deadlines


@dataclass(eq=False)
class Lease:
    """A record with a deadline."""

    deadline_ns: int | None


STEPS = st.lists(
    st.tuples(st.sampled_from(["make", "renew", "never", "sooner", "end"]), st.integers(0, 7), st.integers(0, 50)),
    max_size=60,
)


@given(steps=STEPS)
def test_the_index_is_the_scan(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is made, renewed, put off for good, moved nearer (which is told) or ended."""
    leases: dict[int, Lease] = {}
    index = Deadlines(lambda lease: lease in leases.values(), leases.values)
    for what, key, ns in steps:
        lease = leases.get(key)
        if what == "make" and lease is None:
            leases[key] = Lease(ns)
            index.add(leases[key])
        elif what == "end":
            leases.pop(key, None)
        elif lease is not None and what == "never":
            lease.deadline_ns = None
        elif lease is not None and what == "sooner":
            lease.deadline_ns = ns
            index.add(lease)
        elif lease is not None and what == "renew":
            lease.deadline_ns = None if lease.deadline_ns is None else lease.deadline_ns + ns
        first = min((each.deadline_ns for each in leases.values() if each.deadline_ns is not None), default=None)
        for now_ns in range(60):
            assert index.may_be_due(now_ns) or first is None or first > now_ns
        if key % 2:  # it puts itself in order when it is asked, which is not always
            assert index.first_ns() == first


def test_what_is_gone_does_not_pile_up() -> None:
    """A storm of records that come and go within their time leaves no more entries than a sweep allows."""
    leases: dict[int, Lease] = {}
    index = Deadlines(lambda lease: lease in leases.values(), leases.values)
    for nr in range(10_000):
        leases.clear()
        leases[nr] = Lease(10**15 + nr)
        index.add(leases[nr])
    assert len(index) < 2_000
