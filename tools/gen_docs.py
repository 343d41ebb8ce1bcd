"""Write the tables of the docs that the code knows better, or check that they are as the code has them.

python -m tools.gen_docs            write them anew
python -m tools.gen_docs --check    compare and change nothing; status 1 and the stale files' names if any differ

A table stands between two lines of its file, `<!-- generated: NAME -->` and `<!-- end -->`; the rest is written by
hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from fault_lab.injection.points import points_table
from fault_lab.plan.acts import acts_table
from fpstated.config.show import settings_tables
from host_agent.decision_rules import decisions_table, refusals_table
from host_agent.service.access.matrix import matrix_table
from host_agent.service.metrics import metrics_table
from tools.ctl_table import ctl_table
from tools.error_table import calls_table, common_table, reasons_table
from vmm_controller.metrics import metrics_table as controller_metrics_table

DOCS = Path(__file__).resolve().parent.parent / "docs"
_SECTION = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n)(?P<body>.*?)(<!-- end -->\n)", re.DOTALL)

#: What makes each table, by its name.
TABLES: dict[str, Callable[[], str]] = {
    "acts": acts_table,
    "access-matrix": matrix_table,
    "controller-metrics": controller_metrics_table,
    "decisions": decisions_table,
    "ctl-commands": ctl_table,
    "error-calls": calls_table,
    "error-common": common_table,
    "error-reasons": reasons_table,
    "fault-points": points_table,
    "metrics": metrics_table,
    "refusals": refusals_table,
    "settings": settings_tables,
}


def generated(text: str) -> str:
    """``text`` with each table as it should be. Raises KeyError for a name that nobody makes."""
    return _SECTION.sub(lambda match: f"{match[1]}{TABLES[match['name']]()}{match[4]}", text)


def stale() -> list[Path]:
    """The files whose tables are not as they should be."""
    return [path for path in sorted(DOCS.glob("*.md")) if generated(path.read_text()) != path.read_text()]


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(prog="python -m tools.gen_docs", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    checking = parser.parse_args().check
    found = stale()
    for path in found:
        if checking:
            print(f"{path.relative_to(DOCS.parent)} is stale: python -m tools.gen_docs", file=sys.stderr)
        else:
            path.write_text(generated(path.read_text()))
    print(f"docs: {len(TABLES)} tables, {len(found)} files {'stale' if checking else 'written'}")
    return 1 if checking and found else 0


if __name__ == "__main__":
    sys.exit(main())
