"""The plans that come with a release: examples that run, by the names of their files."""

from __future__ import annotations

from pathlib import Path


def shipped_plans() -> dict[str, Path]:
    """Return the files by their names without the ending, sorted."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def find_plan(name: str) -> Path:
    """Return the file ``name``, or else the shipped plan of that name. Raises ``FileNotFoundError``."""
    if Path(name).exists():
        return Path(name)
    found = shipped_plans().get(name)
    if found is None:
        raise FileNotFoundError(f"expected a file or one of {', '.join(shipped_plans())}, got {name!r}")
    return found
