"""The bench runs, and writes what a program can read. Its figures are judged by people, not by tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

KEYS = {"name", "unit", "value", "reference", "ratio", "goal", "ok", "spread"}


def test_the_bench_writes_its_rows(tmp_path: Path) -> None:
    """A short run prints a table and a JSON list; what is counted, and not timed, must be exact even then."""
    path = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "--quick", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    rows = json.loads(path.read_text())
    assert all(set(row) == KEYS for row in rows)
    assert f"of {len(rows)} rows reach their goal" in done.stdout.splitlines()[-1]
    counted = {row["name"]: row["value"] for row in rows if row["unit"] in ("bytes", "writes")}
    assert counted["bytes copied by 1,000 pairs with nothing live"] == 0
    assert counted["XFD writes by 1,000 pairs with equal XFD"] == 0
    assert counted["needless XFD writes by 1,000 pairs with different XFD"] == 0


def test_a_group_nobody_has_is_named() -> None:
    """``python -m bench GROUP`` says which groups there are."""
    done = subprocess.run([sys.executable, "-m", "bench", "speed"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown group speed: choose from swap, memory" in done.stderr
