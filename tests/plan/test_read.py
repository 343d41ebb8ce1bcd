"""A plan's text: what is read, in which forms, and where each mistake stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fpstate.fault.v1 import fault_pb2, plan_pb2
from google.protobuf import json_format

from fault_lab.plan.canonical import canonical_json, plan_hash, readable_json
from fault_lab.plan.check import MIX
from fault_lab.plan.load import check_plan, load_plan
from fault_lab.plan.problem import PlanError
from fault_lab.plan.schema import json_schema
from fault_lab.plan.warnings import warnings
from fault_lab.plans import find_plan, shipped_plans

ROOT = Path(__file__).resolve().parent.parent.parent
#: Plans that are wrong, and all that is said of them.
MISTAKES = Path(__file__).resolve().parent / "mistakes"

SMALL = """\
api-version: fpstate.fault.v1
name: small
topology:
  hosts: [{name: host}]
  vms: [{name: a, vcpus: 2}]
"""


def refused(text: str) -> list[str]:
    """The lines of what is wrong with a text."""
    with pytest.raises(PlanError) as caught:
        load_plan(text, "p.yaml")
    return str(caught.value).splitlines()


# -- what is read ------------------------------------------------------------------------------------------------------


def fault(text: str) -> plan_pb2.PlannedFault:
    """A plan's one fault, written as its mapping."""
    return load_plan(f"{SMALL}faults:\n  - {{name: f, {text}}}\n").faults[0]


@pytest.mark.parametrize(
    ("written", "in_full"),
    [
        pytest.param("ENOMEM", {"errno_action": {"errno_value": 12}}, id="an errno"),
        pytest.param("{errno: 12}", {"errno_action": {"errno_value": 12}}, id="an errno by its number"),
        pytest.param("{errno_action: {errno_value: 12}}", {"errno_action": {"errno_value": 12}}, id="in full"),
        pytest.param("{errnoAction: {errnoValue: 12}}", {"errno_action": {"errno_value": 12}}, id="as JSON has it"),
    ],
)
def test_an_errno(written: str, in_full: dict[str, object]) -> None:
    """By its name, its number, or in full."""
    action = fault(f"point: fpstate.realloc.alloc, action: {written}").action
    assert action == json_format.ParseDict(in_full, fault_pb2.FaultAction())


@pytest.mark.parametrize(
    ("written", "in_full"),
    [
        pytest.param("drop", {"drop_action": {}}, id="drop"),
        pytest.param("{delay: 5ms}", {"delay_action": {"min": "0.005s"}}, id="a delay"),
        pytest.param("{delay: 1ms..2.5s}", {"delay_action": {"min": "0.001s", "max": "2.5s"}}, id="a range"),
        pytest.param("{duplicate: 3}", {"duplicate_action": {"copies": 3}}, id="copies"),
        pytest.param("{reorder: 2}", {"reorder_action": {"depth": 2}}, id="depth"),
        pytest.param("{corrupt: 8}", {"corrupt_action": {"bits": 8}}, id="bits"),
        pytest.param("hold", {"hold_action": {}}, id="hold until healed"),
        pytest.param("{hold: 1m}", {"hold_action": {"duration": "60s"}}, id="hold for a while"),
    ],
)
def test_what_happens_to_a_message(written: str, in_full: dict[str, object]) -> None:
    """Short forms of the actions of links."""
    action = fault(f"point: link.message, action: {written}").action
    assert action == json_format.ParseDict(in_full, fault_pb2.FaultAction())


def test_attributes_as_the_kernel_writes_them() -> None:
    """The boot form, kebab-case, percents and Y are the same as what they stand for."""
    line = fault('point: fpstate.realloc.alloc, attributes: "2,30,4096,5"').attributes
    long = fault(
        "point: fpstate.realloc.alloc, attributes: {interval: 2, probability: 30%, space: 4_096, times: 5}"
    ).attributes
    assert line == long
    named = fault(
        "point: fpstate.realloc.alloc, attributes: {fail-nth: 3, task-filter: Y, stacktrace-depth: 4, min-order: 1, "
        "ignore-gfp-wait: N, probability: 0.5}"
    ).attributes
    assert (named.fail_nth, named.task_filter, named.stacktrace_depth, named.min_order) == (3, True, 4, 1)
    assert named.probability_ppm == 5_000


def test_numbers_are_read_by_their_field() -> None:
    """Hexadecimal masks, separated digits, 64 bits; a text that looks like a number stays a text."""
    plan = load_plan(f"{SMALL}seed: 0xffff_ffff_ffff_ffff\ndescription: 12\nbudget: {{events: 1_000}}\n")
    assert (plan.seed, plan.description, plan.budget.events) == ((1 << 64) - 1, "12", 1000)


def test_the_canonical_text_is_the_plan() -> None:
    """YAML, the readable JSON and the canonical text read back to the same message, and so have one hash."""
    for path in shipped_plans().values():
        plan = load_plan(path.read_text(), path.name)
        for text in (canonical_json(plan), readable_json(plan), readable_json(plan).replace("  ", "\t")):
            again = load_plan(text, "p.json")
            assert again == plan
            assert plan_hash(again) == plan_hash(plan)
        assert json.loads(canonical_json(plan)) == json.loads(json.dumps(json_format.MessageToDict(plan)))


def test_a_hash_that_does_not_change() -> None:
    """The canonical text is written out here, so that a change of it is seen."""
    plan = load_plan(f"{SMALL}seed: 5\nfaults: [{{name: f, point: fpstate.realloc.alloc, gate-ppm: 0}}]\n")
    text = (
        '{"apiVersion":"fpstate.fault.v1","faults":[{"gatePpm":0,"name":"f","point":"fpstate.realloc.alloc"}],'
        '"name":"small","seed":"5","topology":{"hosts":[{"name":"host"}],"vms":[{"name":"a","vcpus":2}]}}'
    )
    assert canonical_json(plan) == text
    assert plan_hash(plan) == "df26c59a8f867fe677066c8e8749a326e394fa0745ac21830b2ef3915363c717"


def test_a_comment_and_the_order_of_keys_make_no_other_plan() -> None:
    """The hash is of what is said."""
    lines = SMALL.splitlines()
    turned = "\n".join([lines[1], "# a comment", lines[0], *lines[2:]]) + "\n"
    assert plan_hash(load_plan(turned)) == plan_hash(load_plan(SMALL))
    assert plan_hash(load_plan(f"{SMALL}seed: 1\n")) != plan_hash(load_plan(SMALL))


def test_surrogates() -> None:
    """A pair, as JSON escapes what lies beyond 16 bits, is one character; half of one is no text."""
    crab = SMALL + 'description: "\\ud83e\\udd80"\n'
    assert load_plan(crab).description == "\U0001f980"
    half = refused(SMALL + 'description: "\\ud83e"\n')
    assert half == ["p.yaml:6:14: description: expected a text, got '\\ud83e'"]
    assert "expected a text with a text" in refused(SMALL.replace("vcpus: 2", 'labels: {"\\ud800": x}'))[0]


def test_texts_of_any_kind() -> None:
    """What JSON may hold in a text comes back: control characters, line separators, what is not printable."""
    plan = load_plan(SMALL)
    plan.description = 'tab\t "quotes" \\ \u2028 \x7f \x85 \U0001f980 \ufffe'
    assert load_plan(canonical_json(plan)) == plan
    assert load_plan(readable_json(plan)) == plan


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["form", "meaning"])
def test_mistakes(name: str, rewrite: bool) -> None:
    """Each with its line and column, what was expected and what was there; all of them at once."""
    said = refused((MISTAKES / f"{name}.yaml").read_text())
    if rewrite:
        (MISTAKES / f"{name}.txt").write_text("".join(f"{line}\n" for line in said))
    assert said == (MISTAKES / f"{name}.txt").read_text().splitlines()


def test_a_text_that_is_no_yaml() -> None:
    """The place where it stops being YAML."""
    (line,) = refused("name: [a\nseed: 1\n")
    assert line.startswith("p.yaml:2:5: plan: expected YAML or JSON, got while parsing a flow sequence")
    assert refused("") == ["p.yaml:1:1: plan: expected a plan, got an empty text"]
    assert refused("a: 1\n---\nb: 2\n")[0].startswith("p.yaml:2:1: plan: expected YAML or JSON")


def test_a_text_that_grows() -> None:
    """Aliases that make a small text a large tree are refused, as is a large text."""
    levels = ["faults: &l0 [{name: f}]"] + [f"x{nr}: &l{nr} [{', '.join([f'*l{nr - 1}'] * 10)}]" for nr in range(1, 9)]
    assert refused("\n".join(levels))
    hosts = "[" + ", ".join(["*h"] * 51_000) + "]"
    text = f"topology:\n  vms: [&h {{name: a}}]\n  hosts: {hosts}\n  controllers: {hosts}\n"
    assert any("expected at most 100000 fields and items" in line for line in refused(text))
    assert refused("[" * 100_000) == ["p.yaml:1:1: plan: expected a plan, got a text that is nested without an end"]
    assert refused("#" * (1 << 21))[0].endswith("expected at most 1048576 characters, got 2097152")


def test_a_plan_without_a_text() -> None:
    """A message that was made by a program is checked by the same rules; there is no line to point at."""
    plan = plan_pb2.Plan(api_version="fpstate.fault.v1", name="made")
    with pytest.raises(PlanError, match=r"made by me: topology\.hosts: expected at least one host, got none"):
        check_plan(plan, "made by me")


# -- what could never fire ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "path"),
    [
        ("{probability: 0}", "probability_ppm"),
        ("{times: 0}", "times"),
        ("{task-filter: Y}", "task_filter"),
        ("{ignore-gfp-wait: Y}", "ignore_gfp_wait"),
        ("{ignore-gfp-highmem: Y}", "ignore_gfp_highmem"),
        ("{min-order: 3}", "min_order"),
        ("{require: [Xsetbv], stacktrace-depth: 0}", "stacktrace_depth"),
    ],
)
def test_a_fault_that_cannot_fire_is_a_warning(attributes: str, path: str) -> None:
    """The plan runs; the warning says what would let the fault fire."""
    text = f"{SMALL}faults:\n  - {{name: f, point: fpstate.realloc.alloc, attributes: {attributes}}}\n"
    assert [warning.path for warning in warnings(load_plan(text))] == [f"faults[0].attributes.{path}"]


def test_fail_nth_needs_neither_chance_nor_times() -> None:
    """It decides alone, so neither is a warning."""
    text = f"{SMALL}faults:\n  - {{name: f, point: fpstate.realloc.alloc, attributes: {{fail-nth: 1, times: 0}}}}\n"
    assert warnings(load_plan(text)) == []


# -- what is shipped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_plans())
def test_a_shipped_plan(name: str) -> None:
    """It is called as its file is, has a description, no mistake and no warning."""
    plan = load_plan(find_plan(name).read_text(), name)
    assert plan.name == name
    assert plan.description
    assert warnings(plan) == []


def test_the_mix_is_the_one_there_is() -> None:
    """The names of scripts that a plan may give are those of the built-in mix."""
    assert sorted(MIX) == sorted(path.stem for path in (ROOT / "fpstated" / "mix").glob("*.txt"))


def test_the_schema_has_every_field() -> None:
    """Each message with its fields in snake_case and in kebab-case; points and phases by name."""
    schema = json.loads(json_schema())
    planned = schema["$defs"]["PlannedFault"]["properties"]
    assert {"gate_ppm", "gate-ppm", "gatePpm"} <= set(planned)
    assert "fpstate.realloc.alloc" in planned["point"]["enum"]
    assert "chaos" in planned["phases"]["items"]["enum"]
    assert {"errno", "drop_action"} <= set(schema["$defs"]["FaultAction"]["anyOf"][0]["properties"])
