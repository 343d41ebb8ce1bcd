"""The plugin in other surroundings: several workers, a guest's install, a suite that does not use it."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.testing.suite import Suite, suite

pytest_plugins = ["pytester"]
__all__ = ["suite"]

#: pytest in a Python that finds everything but what a base install lacks.
WITHOUT_EXTRAS = """
import sys
from importlib.machinery import PathFinder

class Base(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        extras = ("apsw", "grpc_channelz", "grpc_health", "grpc_reflection", "numpy", "prometheus_client", "yaml")
        return None if name.partition(".")[0] in extras else PathFinder.find_spec(name, path, target)

sys.meta_path = [Base if finder is PathFinder else finder for finder in sys.meta_path]
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_several_workers_run_the_same_tests(suite: Suite) -> None:
    """A drawn seed is one for all; hosts and artefacts get in nobody's way; the figures come together."""
    suite.write("""
@pytest.mark.fpstate_faults("stuck.yaml", seeds="1..6", violation="no-stuck-exit")
def test_violates(fpstate_run):
    pass

@pytest.mark.fpstate_faults("growth-fails-once")
def test_drawn(fpstate_run):
    print("ran with", fpstate_run.seed)

@pytest.mark.parametrize("nr", range(4))
def test_host(nr, fpstated_vcpu, fail_allocation, fpstated_controller):
    (fault,) = fail_allocation()
    fpstated_controller("retry")
    fpstated_vcpu.xsetbv(0x602E7)
    assert fault.fired == 1
""")
    suite.configure("")
    ran = suite.pytester.runpytest_subprocess("-n", "2", "-v", "--fault-artifacts=kept")
    ran.assert_outcomes(passed=9, failed=2)
    assert "test_guest.py::test_violates: runs: 6, steps: 958, violations: 4, faults fired: 12" in ran.outlines
    kept = sorted(path.name for path in (suite.path / "kept").iterdir())
    assert kept == ["test_guest.py-test_violates-seed-5", "test_guest.py-test_violates-seed-6"]
    drawn = suite.pytester.runpytest_subprocess("-n", "2", "-rP", "-k", "drawn", "--fault-seed=random")
    drawn.assert_outcomes(passed=1)
    seed = next(line for line in drawn.outlines if line.startswith("fault seed: ")).split()[2]
    assert f"ran with {seed}" in drawn.outlines


def test_a_guests_install_says_what_is_missing(suite: Suite) -> None:
    """Nothing breaks where only the base is installed; who asks for a fixture is told what to install."""
    suite.write("""
def test_of_its_own():
    pass

@pytest.mark.parametrize("name", ["fpstated_host", "fpstate_world", "fpstate_cluster", "fpstate_faults"])
def test_fixture(name, request):
    request.getfixturevalue(name)
""")
    (suite.path / "test_marked.py").write_text(
        "import pytest\n@pytest.mark.fpstate_faults('cut-off')\ndef test_it(fpstate_run):\n    pass\n"
    )
    words = [sys.executable, "-c", WITHOUT_EXTRAS, "--continue-on-collection-errors"]
    ran = subprocess.run(words, cwd=suite.path, capture_output=True, text=True, check=False, env=_plain())
    assert "1 passed, " in ran.stdout.splitlines()[-1]
    assert ran.stdout.count("this install is a guest's; this needs: pip install 'fpstated[testing]'") >= 5


def test_a_suite_without_faults_loads_none_of_it(suite: Suite) -> None:
    """Neither numpy nor gRPC nor anything of the lab; and the old line in a conftest is no second plugin."""
    (suite.path / "conftest.py").write_text('pytest_plugins = ["fpstated.testing"]\n')
    suite.write("""
import sys

def test_it(request):
    assert not {"numpy", "grpc", "yaml", "fault_lab", "host_agent"} & set(sys.modules)
    assert [each for each in sys.modules if each.startswith("fpstated.testing_host")] == []
    plugins = dict(request.config.pluginmanager.list_name_plugin())
    assert [name for name in plugins if plugins[name] is plugins["fpstated.testing"]] == ["fpstated.testing"]
""")
    suite.pytester.runpytest_subprocess().assert_outcomes(passed=1)


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
