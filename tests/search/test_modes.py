"""Each mode: which runs it makes, told in full; that every run repeats by itself; what it finds that others do not."""

from __future__ import annotations

import pytest
from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.canonical import readable_json
from fault_lab.plan.load import load_plan
from fault_lab.search.run import Search, SearchModeError, mode_name, mode_of, search
from fault_lab.search.swarm import swarm_plan
from fault_lab.sim.run import simulate
from tests.search.plans import forgets_the_second_retry, lost_wake_up, plan_of

FIRST, EVERY_NTH, WAKEUP = plan_of("sim/first.yaml"), plan_of("every-nth"), plan_of("search/wakeup.yaml")
STORM = plan_of("sim/storm.yaml")
MODES = [mode_of(name) for name in ("random", "swarm", "fail-nth", "pairs", "pct")]


def told(found: Search) -> str:
    """A search as a text: what each run varied, how many hits fired in it, what failed; and the bounds."""
    lines = []
    for tried in found:
        violation = tried.result.violation
        failed = f"   {violation.check}: {violation.text}" if violation else ""
        lines.append(f"{len(tried.result.fired)} fired   {tried.varied}{failed}")
    end = "nothing left" if found.exhausted else "bounds reached"
    return "\n".join([*lines, f"{end}: {found.bounds}"]) + "\n"


# -- the systematic modes ----------------------------------------------------------------------------------------------


def test_every_hit_fails_once() -> None:
    """The shipped plan's own search: one run in which nothing fires, and one for each hit of it, in their order."""
    assert EVERY_NTH.search.mode == plan_pb2.SEARCH_MODE_FAIL_NTH
    found = search(EVERY_NTH, EVERY_NTH.search.mode, runs=EVERY_NTH.search.runs, seed=1)
    assert told(found) == (
        "0 fired   nothing fires\n"
        "1 fired   hit 1 of 8: create, hit 1 of kvm.vcpu.alloc at vms/a/vcpus/0\n"
        "1 fired   hit 2 of 8: guest, hit 1 of fpstate.guest.alloc at vms/a/vcpus/0\n"
        "1 fired   hit 3 of 8: create, hit 1 of kvm.vcpu.alloc at vms/a/vcpus/1\n"
        "1 fired   hit 4 of 8: guest, hit 1 of fpstate.guest.alloc at vms/a/vcpus/1\n"
        "1 fired   hit 5 of 8: permission, hit 1 of fpstate.realloc.perm at vms/a/vcpus/0\n"
        "1 fired   hit 6 of 8: grow, hit 1 of fpstate.realloc.alloc at vms/a/vcpus/0\n"
        "1 fired   hit 7 of 8: permission, hit 1 of fpstate.realloc.perm at vms/a/vcpus/1\n"
        "1 fired   hit 8 of 8: grow, hit 1 of fpstate.realloc.alloc at vms/a/vcpus/1\n"
        "nothing left: seed 1, each hit alone, 8 in all, 164 steps a run at most\n"
    )
    assert found.seen >= {"fired:create", "fired:guest", "fired:grow", "fired:permission"}


def test_pairs_need_hits_that_are_there_only_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of the second failure: no hit alone shows it; the retry that a first failure leads to is the second hit."""
    forgets_the_second_retry(monkeypatch)
    assert told(search(FIRST, plan_pb2.SEARCH_MODE_FAIL_NTH, seed=1)) == (
        "0 fired   nothing fires\n"
        "1 fired   hit 1 of 1: no-memory, hit 1 of fpstate.realloc.alloc at vms/a/vcpus/0\n"
        "nothing left: seed 1, each hit alone, 1 in all, 32 steps a run at most\n"
    )
    assert told(search(FIRST, plan_pb2.SEARCH_MODE_PAIRS, seed=1)) == (
        "0 fired   nothing fires\n"
        "1 fired   hit 1 of 1: no-memory, hit 1 of fpstate.realloc.alloc at vms/a/vcpus/0\n"
        "2 fired   pair 1 of 1: no-memory, hit 1 of fpstate.realloc.alloc at vms/a/vcpus/0, then no-memory, "
        "hit 2 of fpstate.realloc.alloc at vms/a/vcpus/0"
        "   no-stuck-exit: vms/a/vcpus/0/exits/1 is applying at generation 2\n"
        "nothing left: seed 1, each hit alone and each pair, 2 in all, 583 steps a run at most\n"
    )


def test_pairs_are_complete() -> None:
    """Behind each hit every hit that its run reaches: as many runs as hits and pairs and one, no two the same."""
    plan = plan_pb2.Plan()
    plan.CopyFrom(EVERY_NTH)
    plan.topology.vms[0].vcpus = 1
    found = search(plan, plan_pb2.SEARCH_MODE_PAIRS, seed=1)
    hits = [[(hit.point, hit.entity, hit.hit) for hit in tried.plan.schedule.hits] for tried in found]
    assert found.exhausted
    assert len({tuple(sorted(each)) for each in hits}) == len(hits)
    (none,) = [each for each in hits if not each]
    singles = [each[0] for each in hits if len(each) == 1]
    pairs = [each for each in hits if len(each) == 2]
    assert (none, len(singles)) == ([], 4)
    assert {pair[0] for pair in pairs} <= set(singles)
    # Whatever fails at first is asked for again: each hit has a pair with the next of its own.
    assert {(point, entity, 2) for point, entity, _ in singles} <= {pair[1] for pair in pairs}


@pytest.mark.parametrize("name", ["lost-replies", "cut-off", "killed-and-restarted"])
def test_until_its_hit_a_run_is_the_one_without(name: str) -> None:
    """At points of messages, services and processes too: exactly the hit that was meant fires, and no other."""
    plan = plan_of(name)
    for guest in plan.workload.guests:
        guest.rounds = 1
    for tried in search(plan, plan_pb2.SEARCH_MODE_FAIL_NTH, runs=8, seed=3):
        meant = [(hit.point, hit.entity, hit.hit) for hit in tried.plan.schedule.hits]
        assert [(hit.point, hit.entity, hit.hit) for hit in tried.result.fired] == meant, tried.varied


# -- the modes that go on ----------------------------------------------------------------------------------------------


def test_priorities_find_an_order_that_latencies_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost wake-up between a quick guest and a slow controller: latencies alone never show it, priorities do soon."""
    lost_wake_up(monkeypatch)
    by_time = search(WAKEUP, plan_pb2.SEARCH_MODE_RANDOM, runs=40, seed=1)
    assert not any(tried.result.violation for tried in by_time)
    by_priority = search(WAKEUP, plan_pb2.SEARCH_MODE_PCT, runs=40, seed=1, depth=2)
    found = [tried for tried in by_priority if tried.result.violation]
    assert len(found) >= 10
    assert {tried.result.violation.check for tried in found if tried.result.violation} == {"guests-end"}
    assert all(tried.result.deviations for tried in found)


def test_without_a_bug_no_order_is_a_violation() -> None:
    """Late messages are no bug: the same plan with the control plane that there is."""
    found = search(WAKEUP, plan_pb2.SEARCH_MODE_PCT, runs=20, seed=1, depth=3)
    assert told(found).splitlines()[-1] == (
        f"bounds reached: priorities of seeds 1..20, depth 3, {found.counts.steps_most} steps a run at most"
    )
    assert not found.counts.violations


def test_a_swarm_draws_every_knob() -> None:
    """Over some seeds each fault is there and is not, more and less likely; times, limits and latencies differ."""
    drawn = [swarm_plan(STORM, seed) for seed in range(60)]
    names = [{fault.name for fault in plan.faults} for plan in drawn]
    assert all(names)
    for fault in STORM.faults:
        assert 10 < sum(fault.name in each for each in names) < 50
        likely = {each.attributes.probability_ppm for plan in drawn for each in plan.faults if each.name == fault.name}
        assert len(likely) > 3 or fault.attributes.probability_ppm == 0
    assert not any(fault.HasField("gate_ppm") for plan in drawn for fault in plan.faults)
    hosts = [plan.topology.hosts[0] for plan in drawn]
    assert {host.exit_deadline.ToMilliseconds() for host in hosts} == {2000, 1000}
    assert {host.default_lease.ToMilliseconds() for host in hosts} == {3000, 1500, 1000}
    assert len({plan.topology.link_default.max.ToNanoseconds() for plan in drawn}) == 5


@pytest.mark.parametrize("mode", MODES, ids=mode_name)
def test_every_run_repeats_by_itself(mode: plan_pb2.SearchMode.ValueType) -> None:
    """From the plan's text and the seed alone, to the byte."""
    for tried in search(EVERY_NTH if mode_name(mode) != "pct" else WAKEUP, mode, runs=4, seed=5):
        again = simulate(load_plan(readable_json(tried.plan)), tried.seed)
        assert again.digest == tried.result.digest, tried.varied


def test_a_mode_that_there_is_not() -> None:
    """The modes are named."""
    with pytest.raises(SearchModeError, match="expected one of fail-nth, pairs, pct, random, swarm, got exhaustive"):
        search(FIRST, plan_pb2.SEARCH_MODE_EXHAUSTIVE, seed=1)
    with pytest.raises(SearchModeError, match=r"expected one of random, swarm, .*, got 'luck'"):
        mode_of("luck")
