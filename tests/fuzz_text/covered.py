"""The engine that follows the coverage: atheris, in a process for each target. ``pip install 'fpstated[fuzz]'``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

_DONE: Final = re.compile(r"Done (\d+) runs|stat::number_of_executed_units:\s*(\d+)")
_INSTRUMENTED: Final = ("fpstated", "fpu_core", "host_agent", "guest_agent", "vmm_controller")


def run_process(name: str, *, seconds: float, seed: int, folder: Path) -> tuple[int, Path | None]:
    """Fuzz one target in a process: how many inputs, and the file with the one that failed."""
    corpus, found = folder / name, folder / f"crash-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz_text.covered", name, str(corpus)]
    command += [
        f"-max_total_time={max(1, round(seconds))}",
        f"-seed={seed % (1 << 32)}",
        "-timeout=10",
        "-rss_limit_mb=2048",
    ]
    command += [f"-exact_artifact_path={found}", "-print_final_stats=1", "-max_len=20000"]
    found.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    counts = [int(a or b) for a, b in _DONE.findall(done.stderr)]
    if done.returncode and not found.exists():
        raise RuntimeError(done.stderr[-3000:])
    return max(counts, default=0), found if found.exists() else None


def main() -> None:
    """Fuzz the target that the command line names, until libFuzzer is satisfied; the rest of it is libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        from tests.fuzz_text.targets import TARGETS
    name, corpus = sys.argv[1:3]
    (target,) = (each for each in TARGETS if each.name == name)
    for nr, seed in enumerate(target.seeds):
        (Path(corpus) / f"seed-{nr}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[3:], corpus], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
