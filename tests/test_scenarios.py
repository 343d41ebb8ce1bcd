"""Every scenario prints what its file says; tests/scenarios/__init__.py tells how to read and write one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scenarios import task_commands
from tests.scenarios.block import ScenarioError
from tests.scenarios.runner import FILES, FOLDER, difference, name_of, run

#: Suites about KVM, whose files run under every policy.
KVM_SUITES = ("kvm-selftests", "kvm-unit-tests")
POLICIES = ("on_write", "on_cpuid", "three_buffer")

SMALL = """\
# A VM, to have something to look at.
create-vm a
----
H  vm a: sapphire-rapids, kernel rules 6.18     XCR0 0x602e7
"""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_scenario(path: Path, rewrite: bool) -> None:
    """The file's commands print its output, every invariant holds after each, and the log replays to one digest."""
    expected = path.read_text(encoding="utf-8")
    printed = run(expected)
    if printed == expected:
        return
    if not rewrite:
        pytest.fail(difference(path, expected, printed), pytrace=False)
    path.write_text(printed, encoding="utf-8")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("path", [path for path in FILES if path.parent.parent.name in KVM_SUITES], ids=name_of)
def test_guest_and_userspace_see_the_same_under_each_policy(path: Path, policy: str) -> None:
    """When memory is taken is the host's own business: a guest and a VMM are told the same, and there is no exit."""
    text = path.read_text(encoding="utf-8")
    printed = run(text, policy=policy)
    assert f", {policy}\n" in printed
    assert "U  exit" not in printed
    assert _seen(printed) == _seen(text)


def _seen(text: str) -> list[str]:
    """What guest and userspace are told. Not: sizes of containers, and what the host intercepts from now on."""
    told: list[str] = []
    for line in text.splitlines():
        left, right = line[3:46].strip(), line[46:].strip()
        if line.startswith("G    "):  # the answer stands below, because the host did something in between
            told[-1] += right if left == "..." else left
        elif line.startswith(("G  ", "U  ")) and not left.startswith("KVM_CREATE_VCPU"):
            told.append(f"{left}: {right.partition(';')[0] if line[0] == 'G' else right}".replace("commit", "done"))
    return told


def test_files_are_numbered_and_open_with_a_sentence() -> None:
    """Each file has a number of its own in its folder, and the first line of each says in a sentence what it shows."""
    numbers = [(path.parent, path.name.partition("-")[0]) for path in FILES]
    assert all(number.isdecimal() and len(number) in (2, 3) for _folder, number in numbers)
    assert len(set(numbers)) == len(numbers)
    for path in FILES:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert re.fullmatch(r"# .+\.", first), f"{path.name} opens with {first!r}"


def test_a_wrong_expectation_is_shown_as_a_diff_with_the_command_that_accepts_it() -> None:
    """Somebody whose change makes a scenario fail sees which line differs, and what to type if the new one is right."""
    wrong = SMALL.replace("6.18", "5.16")
    shown = difference(Path("07-example.txt"), wrong, run(wrong))
    assert "-H  vm a: sapphire-rapids, kernel rules 5.16" in shown
    assert "+H  vm a: sapphire-rapids, kernel rules 6.18" in shown
    assert "pytest tests/test_scenarios.py -k 07-example --rewrite" in shown


def test_the_command_names_the_folder_too() -> None:
    """A file in the folder of a suite is told apart from one of the same name elsewhere."""
    shown = difference(FOLDER / "a-suite" / "01-example.txt", SMALL, SMALL)
    assert "-k a-suite/01-example --rewrite" in shown


def test_take_turns_notices_a_task_that_found_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of those that found their own is counted, not printed."""
    text = "create-vm a\ntask b create\ntake-turns YMM main b\n----\n"
    monkeypatch.setattr(task_commands, "_one_turn", lambda *_: b"others")
    with pytest.raises(ScenarioError, match="main lost its YMM in round 1"):
        run(text)


def test_a_rewrite_changes_nothing_but_the_output() -> None:
    """Comments and commands come out as they went in, and what was right already stays."""
    assert run(SMALL) == SMALL
    assert run(SMALL.replace("----\nH  vm a", "----\nH  vm b")) == SMALL


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("dance\n----\n", "line 1: dance: expected one of create-vm", id="an unknown command"),
        pytest.param("create-vm a colour=red\n----\n", "cannot use colour=red", id="a word that means nothing"),
        pytest.param("create-vm a\nguest hlt\n----\n", "line 2: guest hlt", id="an event of no vCPU"),
        pytest.param("create-vm a\n", "line 1: a block of commands ends with ----", id="no output"),
        pytest.param("each 1-x cpuid {}\n----\n", "expected numbers such as 1-4,8", id="no numbers"),
        pytest.param("each 1-3 cpuid 1\n----\n", "a command with {}", id="many times the same"),
        pytest.param("advance 5 weeks\n----\n", "expected a time such as 100ms", id="a time without a unit"),
    ],
)
def test_a_scenario_that_cannot_be_run_names_line_and_reason(text: str, complaint: str) -> None:
    """A typing error in a scenario is never taken for an expected refusal of the host."""
    with pytest.raises(ScenarioError, match=re.escape(complaint)):
        run(text)
