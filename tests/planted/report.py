"""What is printed: a line a bug, a table of the modes, and both in Markdown for docs/planted.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.planted.bugs import BUGS
from tests.planted.outcome import Bounds, Find, Tally, Trial, median, number


def repeats(trial: Trial, bounds: Bounds) -> str:
    """The one command that finds the same again; empty where nothing was found."""
    if not trial.caught:
        return ""
    best = trial.caught[0]
    return f"python -m tests.planted {trial.name} --modes {best.mode} --runs {best.runs} --seed {bounds.seed}"


def lines_of(trial: Trial, bounds: Bounds) -> Iterator[str]:
    """One bug: what has found it, after how many runs, and what repeats that."""
    if trial.error or not trial.caught:
        yield f"{trial.name}: NOT CAUGHT  {trial.error or 'no mode finds it'}  {trial.seconds:.1f} s"
        return
    best = trial.caught[0]
    yield f"{trial.name}: {best.check}; {modes_of(trial)}; {number(trial.faults)} faults left  {trial.seconds:.1f} s"
    yield f"    repeat: {repeats(trial, bounds)}"


def modes_of(trial: Trial) -> str:
    """Each mode with the runs that it took, a dash where it found nothing."""
    return ", ".join(f"{find.mode} {find.runs if find.check else '-'}" for find in trial.finds)


def mode_rows(tally: Tally, modes: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """For each mode: its name, how many it has found, the median of the runs and of the faults left."""
    for mode in modes:
        finds: list[Find] = [find for trial in tally.trials for find in trial.caught if find.mode == mode]
        total = len(tally.trials)
        rate = f"{len(finds)} of {total}, {100 * len(finds) / total:.0f} %" if total else "-"
        yield mode, rate, number(median(find.runs for find in finds)), number(median(find.faults for find in finds))


def mode_table(tally: Tally, modes: Sequence[str]) -> Iterator[str]:
    """The modes, for a terminal."""
    yield f"{'mode':<12}{'found':<18}{'median runs':<14}median faults"
    for mode, rate, runs, faults in mode_rows(tally, modes):
        yield f"{mode:<12}{rate:<18}{runs:<14}{faults}"


def markdown(tally: Tally, modes: Sequence[str]) -> Iterator[str]:
    """Both tables, for the docs."""
    yield "| mode | found | median runs to find | median faults left |"
    yield "|---|---|---|---|"
    for row in mode_rows(tally, modes):
        yield f"| {' | '.join(row)} |"
    yield ""
    yield f"| planted | what is wrong | found by | plan | {' | '.join(modes)} | faults left |"
    yield f"|{'---|' * (len(modes) + 5)}"
    for trial in tally.trials:
        by = {find.mode: str(find.runs) for find in trial.caught}
        check = f"`{trial.caught[0].check}`" if trial.caught else "-"
        plan = trial.finds[0].plan if trial.finds else "-"
        runs = " | ".join(by.get(mode, "-") for mode in modes)
        yield f"| `{trial.name}` | {BUGS[trial.name].title} | {check} | `{plan}` | {runs} | {number(trial.faults)} |"
