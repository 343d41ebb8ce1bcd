"""The export to a real kernel: the script in full, run on a tree that looks like debugfs, and its warnings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fault_lab.linux_export import CAPABILITIES, export_linux
from fault_lab.plan.load import load_plan
from fault_lab.plans import shipped_plans

SMALL = """\
api-version: fpstate.fault.v1
name: small
topology:
  hosts: [{name: host}]
  vms: [{name: a}]
faults:
"""
GROW = "fpstate.realloc.alloc"
GENERIC = {
    "probability": "0",
    "interval": "1",
    "times": "1",
    "space": "0",
    "verbose": "2",
    "verbose_ratelimit_interval_ms": "0",
    "verbose_ratelimit_burst": "0",
    "task-filter": "N",
}
#: What a kernel has after it was booted. Source: include/linux/fault-inject.h; mm/fail_page_alloc.c; mm/failslab.c.
KERNEL = {
    "fail_page_alloc": GENERIC | {"ignore-gfp-wait": "Y", "ignore-gfp-highmem": "Y", "min-order": "1"},
    "failslab": GENERIC | {"ignore-gfp-wait": "Y", "cache-filter": "N"},
    "fail_usercopy": GENERIC,
    "fail_make_request": GENERIC,
}


class Kernel:
    """A tree of files where a kernel has its fault injection."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, files in KERNEL.items():
            for file, value in files.items():
                self._write(f"debug/{name}/{file}", value)
        for file in ("proc/self/make-it-fail", "proc/self/fail-nth"):
            self._write(file, "0")
        self._write("sys/kernel/slab/kvm_vcpu/failslab", "0")
        self._write("sys/block/sda/make-it-fail", "0")

    def _write(self, name: str, value: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(f"{value}\n")

    def values(self) -> dict[str, str]:
        """Every file and what is in it; a task's own are not the system's."""
        files = (path for path in self.root.rglob("*") if path.is_file() and "proc" not in path.parts)
        return {str(path.relative_to(self.root)): path.read_text().strip() for path in files}

    def run(self, script: str, *command: str, device: str = "sda") -> subprocess.CompletedProcess[str]:
        """Run a script here."""
        places = {"DEBUGFS": "debug", "PROC": "proc", "SYS": "sys"}
        environment = {name: str(self.root / folder) for name, folder in places.items()}
        file = self.root.parent / "script.sh"
        file.write_text(script)
        return subprocess.run(
            ["sh", str(file), *command],
            env=environment | {"PATH": "/usr/bin:/bin", "DEVICE": device},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel as it was booted."""
    if shutil.which("sh") is None:
        pytest.skip("missing: sh")
    return Kernel(tmp_path / "kernel")


def exported(faults: str, only: str = "") -> tuple[str, list[str]]:
    """The script and the warnings of a plan with these faults."""
    made = export_linux(load_plan(SMALL + faults), only=only)
    return made.script(), made.warnings


def test_the_script_arms_runs_and_puts_back(kernel: Kernel) -> None:
    """While the command runs every attribute is the plan's, none a default that masks; then all is as it was."""
    before = kernel.values()
    script, _ = exported(f"  - {{name: f, point: {GROW}, attributes: '2,30,8192,20'}}\n")
    ran = kernel.run(script, "sh", "-c", 'grep -r . "$DEBUGFS/fail_page_alloc" "$PROC"; exit 3')
    assert (ran.returncode, ran.stderr) == (3, "")
    seen = {}
    for line in ran.stdout.splitlines():
        name, _, value = line.rpartition(":")
        seen[Path(name).name] = value
    assert seen == {
        "probability": "30",
        "interval": "2",
        "times": "20",
        "space": "2",  # pages
        "verbose": "1",
        "verbose_ratelimit_interval_ms": "0",
        "verbose_ratelimit_burst": "10",
        "task-filter": "Y",
        "ignore-gfp-wait": "N",
        "ignore-gfp-highmem": "N",
        "min-order": "0",
        "make-it-fail": "1",
        "fail-nth": "0",
    }
    assert kernel.values() == before


def test_what_arms_is_written_last_and_put_back_first() -> None:
    """No allocation fails under half of the attributes."""
    script, _ = exported(f"  - {{name: f, point: {GROW}}}\n")
    written = [line.split('"')[1] for line in script.splitlines() if line.startswith("set_value ")]
    assert written[-1] == "$DEBUGFS/fail_page_alloc/probability"


def test_fail_nth_is_the_tasks(kernel: Kernel) -> None:
    """It is written for the command's task; the chance of everybody stays 0."""
    script, warnings = exported(f"  - {{name: f, point: {GROW}, attributes: {{fail-nth: 7}}}}\n")
    ran = kernel.run(script, "sh", "-c", 'cat "$PROC/self/fail-nth" "$DEBUGFS/fail_page_alloc/probability"')
    assert ran.stdout.split() == ["7", "0"]
    assert any("fail-nth counts in one task" in text for text in warnings)


def test_a_slab_cache_and_a_device_are_marked(kernel: Kernel) -> None:
    """KVM's own cache for failslab, the journal's device for I/O errors."""
    before = kernel.values()
    script, _ = exported("  - {name: v, point: kvm.vcpu.alloc}\n  - {name: d, point: journal.write, action: EIO}\n")
    show = 'cat "$SYS/kernel/slab/kvm_vcpu/failslab" "$SYS/block/sda/make-it-fail" "$DEBUGFS/failslab/cache-filter"'
    ran = kernel.run(script, "sh", "-c", f"SYS={kernel.root}/sys; {show}")
    assert ran.stdout.split() == ["1", "1", "Y"]
    assert kernel.values() == before
    refused = kernel.run(script, "true", device="")
    assert refused.returncode == 1
    assert "set DEVICE to the block device" in refused.stderr


def test_a_kernel_that_lacks_it_says_so(kernel: Kernel) -> None:
    """One line that names what is missing, and nothing has been changed."""
    shutil.rmtree(kernel.root / "debug" / "fail_page_alloc")
    before = kernel.values()
    script, _ = exported(f"  - {{name: f, point: {GROW}}}\n")
    ran = kernel.run(script, "true")
    assert ran.returncode == 1
    assert "has the kernel CONFIG_FAIL_PAGE_ALLOC?" in ran.stderr
    assert kernel.values() == before
    assert "expected a command to run" in kernel.run(script).stderr


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (f"{{name: f, point: {GROW}, attributes: {{min-order: 1}}}}", "min-order 1 masks it"),
        (f"{{name: f, point: {GROW}, attributes: {{ignore-gfp-wait: Y}}}}", "ignore-gfp-wait Y masks it"),
        (f"{{name: f, point: {GROW}, attributes: {{ignore-gfp-highmem: Y}}}}", "ignore-gfp-highmem Y masks it"),
        (f"{{name: f, point: {GROW}, attributes: {{times: 0}}}}", "times 0: it never fires"),
        (f"{{name: f, point: {GROW}, attributes: {{probability: 0}}}}", "probability 0: it never fires"),
        (f"{{name: f, point: {GROW}, attributes: {{probability: 0.5}}}}", "whole percents: 1 for 5000 ppm"),
        (f"{{name: f, point: {GROW}, attributes: {{probability: 50}}}}", "a kernel's chance has no seed"),
        (f"{{name: f, point: {GROW}, attributes: {{space: 10}}}}", "pages for fail_page_alloc"),
        (f"{{name: f, point: {GROW}, attributes: {{require: [Xsetbv]}}}}", "a kernel wants addresses"),
        (f"{{name: f, point: {GROW}, attributes: {{should-fail-order: 2.6.20}}}}", "kernels before 6.3 alone"),
        (f"{{name: f, point: {GROW}, scope: {{vm: vms/a}}}}", "a kernel knows no VM"),
        (f"{{name: f, point: {GROW}, gate-ppm: 5}}", "windows, gates and phases are left out"),
        (f"{{name: f, point: {GROW}}}", "grows at KVM_SET_CPUID2"),
        (f"{{name: f, point: {GROW}}}", "asked for with __GFP_NOWARN: the kernel logs nothing"),
        ("{name: f, point: fpstate.realloc.perm}", "a kernel has nothing that makes fpstate.realloc.perm do EPERM"),
        ("{name: f, point: link.message, action: drop}", "a kernel has nothing that makes link.message do Drop"),
        ("{name: f, point: journal.write, action: ENOSPC}", "nothing that makes journal.write do ENOSPC"),
    ],
)
def test_a_warning(fault: str, text: str) -> None:
    """What a kernel would not do, or not so, is said: to whoever exports and in the script."""
    script, warnings = exported(f"  - {fault}\n")
    assert any(text in warning for warning in warnings), warnings
    assert f"# warning: {next(each for each in warnings if text in each)}\n" in script


def test_one_set_of_attributes_a_capability() -> None:
    """The first fault has it; another is left out, and can be exported alone."""
    faults = f"  - {{name: f, point: {GROW}}}\n  - {{name: g, point: fpstate.guest.alloc, attributes: {{times: 9}}}}\n"
    script, warnings = exported(faults)
    assert any("g: fail_page_alloc has one set of attributes, and f has it" in text for text in warnings)
    assert '/times" -1' in script
    alone, _ = exported(faults, only="g")
    assert '/times" 9' in alone
    with pytest.raises(ValueError, match="there is no fault 'h'"):
        exported(faults, only="h")


def test_failcmd(tmp_path: Path) -> None:
    """The kernel's own tool gets each attribute as an option; what it has no option for is a comment."""
    faults = f"  - {{name: f, point: {GROW}, attributes: '2,30,0,20'}}\n  - {{name: v, point: kvm.vcpu.alloc}}\n"
    script = export_linux(load_plan(SMALL + faults)).script(failcmd=True)
    tool = tmp_path / "failcmd.sh"
    tool.write_text('#!/bin/sh\necho "$FAILCMD_TYPE" "$@"\n')
    tool.chmod(0o755)
    file = tmp_path / "script.sh"
    file.write_text(script)
    environment = {"FAILCMD": str(tool), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(["sh", file, "ls", "a b"], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [
        *("fail_page_alloc", "--interval=2", "--times=20", "--space=0", "--verbose=1", "--task-filter=Y"),
        *("--ignore-gfp-wait=N", "--ignore-gfp-highmem=N", "--min-order=0", "--probability=30", "--", "ls", "a", "b"),
    ]
    assert "# v: failcmd.sh has no way for kvm_vcpu: use the debugfs script" in script


@pytest.mark.parametrize("name", shipped_plans())
def test_every_shipped_plan_exports(name: str) -> None:
    """Whatever is in it; the shell reads the script."""
    made = export_linux(load_plan(shipped_plans()[name].read_text(), name))
    assert made.faults
    for script in (made.script(), made.script(failcmd=True)):
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_the_capabilities_are_those_of_points() -> None:
    """Every row names a point and an errno that it takes."""
    from fault_lab.injection.points import FAULT_POINTS

    assert all(number in FAULT_POINTS[point].errnos for point, number in CAPABILITIES)
