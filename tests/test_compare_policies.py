"""``fpstated compare-policies``: deterministic, counted, and the docs show what it prints.

python -m tests.test_compare_policies        writes the table into docs/policies.md and draws docs/policies.svg
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fpstated.compare_chart import svg
from fpstated.compare_guest import CompareError, GuestPlan
from fpstated.compare_policies import Comparison, compare, mix
from fpstated.compare_table import table, to_json
from guest_agent.script_parser import parse_script

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "policies.md"
CHART = ROOT / "docs" / "policies.svg"
_BLOCK = re.compile(r"(<!-- compare-policies -->\n).*?(<!-- end -->)", re.DOTALL)
_COMMAND = (sys.executable, "-m", "fpstated", "compare-policies")


@pytest.fixture(scope="module")
def found() -> Comparison:
    """The built-in mix."""
    return compare(mix(), what="the mix", profile="sapphire-rapids")


def page_with(found: Comparison) -> str:
    """The page with its table as it is now."""
    block = f"```text\n{table(found)}\n```\n"
    return _BLOCK.sub(lambda match: match[1] + block + match[2], PAGE.read_text(encoding="utf-8"))


def test_the_docs_show_what_the_command_prints(found: Comparison) -> None:
    """Table and chart in the docs are of today; this file, run as a module, makes them anew."""
    assert PAGE.read_text(encoding="utf-8") == page_with(found)
    assert CHART.read_text(encoding="utf-8") == svg(found)


def test_twice_the_same(found: Comparison) -> None:
    """No clock and no chance: the same guests give the same figures."""
    assert to_json(compare(mix(), what="the mix", profile="sapphire-rapids")) == to_json(found)


def test_what_the_mix_shows(found: Comparison) -> None:
    """The order of the policies in each figure that the docs speak of."""
    rows = json.loads(to_json(found))["policies"]
    assert list(rows) == ["on_swap", "on_write", "on_cpuid", "three_buffer"]
    runs = {name: row["per_vcpu_run"] for name, row in rows.items()}
    assert [runs[name]["bytes_copied"] > 0 for name in rows] == [False, False, False, True]
    assert [runs[name]["xfd_copies"] for name in rows] == [0, 0, 0, 4]
    at_rest = {name: row["guests"]["never-amx"]["bytes_at_rest"] for name, row in rows.items()}
    assert at_rest == {"on_swap": 2_624, "on_write": 2_624, "on_cpuid": 10_816, "three_buffer": 3 * 10_816}
    assert [row["total"]["exits"] for row in rows.values()] == [1, 1, 0, 0]
    assert all(row["guests"]["after-nm"]["outcome"] == "verified" for row in rows.values())
    assert all(row["guests"]["no-permission"]["outcome"] == "refused" for row in rows.values())


@pytest.mark.parametrize(
    ("nth", "said"),
    [
        pytest.param(
            1,
            {
                "on_swap": "KVM_CREATE_VCPU: ENOMEM",
                "on_write": "KVM_CREATE_VCPU: ENOMEM",
                "on_cpuid": "KVM_CREATE_VCPU: ENOMEM",
                "three_buffer": "KVM_CREATE_VCPU: ENOMEM",
            },
            id="the first: no vCPU under any",
        ),
        pytest.param(
            2,
            {
                "on_swap": "WRMSR XFD: KVM_RUN returns -ENOMEM, parked; RETRY: committed",
                "on_write": "WRMSR XFD: KVM_RUN returns -ENOMEM, parked; RETRY: committed",
                "on_cpuid": "KVM_SET_CPUID2: EFAULT, CPUID and container as before",
                "three_buffer": "KVM_CREATE_VCPU: ENOMEM",
            },
            id="the second: where each policy makes room",
        ),
        pytest.param(
            3,
            {
                "on_swap": "there are only 2 allocations",
                "on_write": "there are only 2 allocations",
                "on_cpuid": "there are only 2 allocations",
                "three_buffer": "KVM_RUN: ENOMEM before the guest is entered",
            },
            id="the third: the thread's own image, or none",
        ),
    ],
)
def test_what_a_failed_allocation_did(nth: int, said: dict[str, str]) -> None:
    """It is told where it happened, and the guest runs to its end all the same."""
    plans = [plan for plan in mix() if plan.name == "after-nm"]
    for row in compare(plans, what="one", profile="sapphire-rapids", fail_nth=nth).policies:
        assert row.failure[0].startswith(said[row.policy]), row
        assert row.failure[-1].endswith(("verified", "2 allocations"))


def test_a_processor_without_xfd() -> None:
    """Nothing writes XFD, nothing grows, and only three buffers copy; all four allocate what they always do."""
    found = compare(mix(), what="the mix", profile="ice-lake")
    for row in found.policies:
        assert row.total.xfd_writes == 0
        assert row.exits == 0
        assert (row.total.bytes_copied > 0) == (row.policy == "three_buffer")


def test_the_chart_is_self_contained(found: Comparison) -> None:
    """Well-formed, nothing fetched from elsewhere, and a label and a value for every bar."""
    drawn = svg(found)
    root = ET.fromstring(drawn)  # noqa: S314 -- made here
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert set(tags) == {"svg", "title", "g", "rect", "text"}
    assert "href" not in drawn
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert [texts.count(row.policy) for row in found.policies] == [6] * 4
    assert tags.count("rect") == 1 + 6 * 4


def test_a_guest_that_reads_back_something_else_ends_the_comparison() -> None:
    """Figures of a run that went wrong are no figures: guest, policy and line are named."""
    script = parse_script("write 1 0 pattern=1:256\nread 1 0 256 = pattern=2\nhlt\n", name="wrong.txt")
    with pytest.raises(CompareError, match=r"wrong under on_swap: mismatch, wrong\.txt:2"):
        compare([GuestPlan("wrong", script)], what="wrong", profile="sapphire-rapids")


def test_the_command_writes_json_and_svg(tmp_path: Path) -> None:
    """A script of one's own; JSON to standard output in place of the table."""
    chart = tmp_path / "chart.svg"
    script = ROOT / "guest_agent" / "scripts" / "xcr0-first.txt"
    done = _run("--script", str(script), "--json", "-", "--svg", str(chart))
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["what"], record["profile"]) == ("xcr0-first.txt", "sapphire-rapids")
    assert record["policies"]["on_swap"]["guests"]["script"]["outcome"] == "verified"
    assert chart.read_text(encoding="utf-8").startswith("<svg ")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        pytest.param(["--profile", "z80"], "--profile: expected one of", id="a processor nobody has"),
        pytest.param(["--script", "/nowhere/x.txt"], "--script: ", id="a script that is not there"),
        pytest.param(["--mix", "--script", "x.txt"], "expected --script or --mix, got both", id="both"),
        pytest.param(["--fail", "0"], "--fail", id="the allocation before the first"),
        pytest.param(["--svg", "/nowhere/x.svg"], "cannot write", id="a file that cannot be made"),
    ],
)
def test_a_mistake_is_named(args: list[str], complaint: str) -> None:
    """Status 1 or 2 and one line that says what was expected."""
    done = _run(*args)
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_COMMAND, *args], capture_output=True, text=True, timeout=60, check=False)


if __name__ == "__main__":
    now = compare(mix(), what="the mix", profile="sapphire-rapids")
    PAGE.write_text(page_with(now), encoding="utf-8")
    CHART.write_text(svg(now), encoding="utf-8")
