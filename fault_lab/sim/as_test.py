"""A plan that fails as a test that fails: a file for plain pytest, with the plan in it."""

from __future__ import annotations

import json

from fpstate.fault.v1 import plan_pb2

from fault_lab.plan.canonical import readable_json
from fault_lab.sim.run import Found

_FILE = '''\
"""{check} does not hold: {text}

Run it with `pytest {file}`; with the plan in a file of its own, `{command} run PLAN --seed {seed}` shows the same.
"""

from __future__ import annotations

{imports}from fault_lab.plan.load import load_plan
from fault_lab.sim.run import simulate

PLAN = r"""
{plan}"""


def test_{name}() -> None:
    """The plan violates nothing."""
{run}
    assert result.violation is None, result.violation
    assert not result.unknown, result.unknown
'''


def pytest_text(plan: plan_pb2.Plan, found: Found, file: str, broken: str = "") -> str:
    """The text of the test file ``file`` for a plan whose own seed violates ``found``, in the version ``broken``."""
    text = readable_json(plan).replace('"""', json.dumps('"""')[1:-1])
    name = found.check.replace("-", "_")
    run = f'result = simulate(load_plan(PLAN, "{file}"))'
    command, imports = "fpstated sim", ""
    if broken:
        command = f"fpstated sim --broken {broken}"
        imports = "from fault_lab.broken.versions import planted\n"
        run = f'with planted("{broken}"):  # without this line: the version that is right\n        {run}'
    return _FILE.format(
        check=found.check,
        text=found.text,
        file=file,
        seed=plan.seed,
        plan=text,
        name=name,
        command=command,
        imports=imports,
        run=f"    {run}",
    )
