"""A campaign as a page that needs nothing else: figures, failures by signature, a map of its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib.resources import files
from typing import Final

from fault_lab.campaign.block import Block, Failure
from fault_lab.campaign.standing import Standing
from fault_lab.campaign.store import Store
from fault_lab.plan.canonical import plan_hash
from fault_lab.search.run import mode_name
from fpstated._version import __version__

#: Blocks that are drawn; more are put together, so that the map stays one.
_CELLS: Final = 2_000
_KEY: Final = (
    ("ok", "", "clean"),
    ("bad", "!", "violations"),
    ("odd", "?", "unknown, or the simulator failed"),
    ("", "", "not run"),
)


def page(store: Store, standing: Standing) -> str:
    """Return the page. The same campaign gives the same bytes."""
    title = f"Campaign {standing.outline.plan.name}"
    return "\n".join(
        (
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{_style()}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *_figures(standing),
            *_failures(store, standing),
            *_sometimes(standing),
            *_map(standing),
            "</body></html>\n",
        )
    )


def _style() -> str:
    return files("fault_lab.campaign").joinpath("page.css").read_text(encoding="utf-8")


def _figures(standing: Standing) -> Iterator[str]:
    outline = standing.outline
    seeds = f"seeds {outline.first} to {outline.last}"
    rows = {
        "runs": f"{standing.runs:,} of {outline.runs:,}, {seeds}, {mode_name(outline.mode)}",
        "steps": f"{standing.steps:,}",
        "faults fired": f"{standing.fired:,}",
        "violations": f"{standing.failed:,} in {len(standing.failures)} kinds",
        "ended by their budget": f"{standing.unknown:,}",
        "the simulator failed": f"{standing.broken:,}",
        "plan": plan_hash(outline.plan),
        "histories": standing.digest,
        "release": __version__,
    }
    yield "<dl>"
    for name, value in rows.items():
        yield f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>"
    yield "</dl>"


def _failures(store: Store, standing: Standing) -> Iterator[str]:
    yield "<h2>Failures</h2>"
    if not standing.failures:
        bounds = f"{standing.runs:,} runs of {mode_name(standing.outline.mode)}"
        yield f"<p>No violation within bounds: {bounds}.</p>"
        return
    yield '<table><thead><tr><th>check</th><th class="n">runs</th><th class="n">first seed</th>'
    yield "<th>what was found</th></tr></thead><tbody>"
    for failure in ranked(standing):
        after = ", ".join(failure.faults) or "nothing was injected"
        yield f'<tr id="{failure.signature}">'
        yield f"<td><code>{escape(failure.check)}</code><br><code>{failure.signature}</code></td>"
        yield f'<td class="n">{failure.count:,}</td><td class="n">{failure.seed}</td>'
        yield f"<td>{escape(failure.text)}<br>after: {escape(after)}"
        yield f"<pre>{escape(repeat(store, failure))}</pre></td></tr>"
    yield "</tbody></table>"


def ranked(standing: Standing) -> list[Failure]:
    """The failures, those with the most runs first."""
    return sorted(standing.failures.values(), key=lambda failure: (-failure.count, failure.signature))


def repeat(store: Store, failure: Failure) -> str:
    """The one command that shows a failure again; of what it was shrunk to, where it was."""
    small = store.shrunk_of(failure.signature)
    path = small if small.exists() else store.plan_of(failure.signature)
    return f"fpstated sim run {path} --seed {failure.seed}"


def _sometimes(standing: Standing) -> Iterator[str]:
    wanted = sorted(standing.outline.plan.checks.sometimes)
    if wanted:
        yield "<h2>To be seen at least once</h2><table><tbody>"
        for name in wanted:
            there = "seen" if name in standing.seen else "never seen"
            yield f"<tr><td><code>{escape(name)}</code></td><td>{there}</td></tr>"
        yield "</tbody></table>"


def _map(standing: Standing) -> Iterator[str]:
    each = -(-standing.outline.blocks // _CELLS)
    together = "" if each == 1 else f", {each} blocks a cell"
    yield f"<h2>Blocks of {standing.outline.block} seeds{together}</h2>"
    yield '<p class="key">'
    for kind, sign, meaning in _KEY:
        yield f'<span><span class="cell {kind}">{sign}</span>{meaning}</span>'
    yield "</p>"
    yield '<div class="map">'
    for first in range(0, standing.outline.blocks, each):
        blocks = [standing.blocks[nr] for nr in range(first, first + each) if nr in standing.blocks]
        yield _cell(standing, first, blocks)
    yield "</div>"


def _cell(standing: Standing, first: int, blocks: list[Block]) -> str:
    seed = standing.outline.first + first * standing.outline.block
    failed = sum(failure.count for block in blocks for failure in block.failures)
    odd = sum(block.unknown + block.broken for block in blocks)
    kind, sign = ("bad", "!") if failed else ("odd", "?") if odd else ("ok", "") if blocks else ("", "")
    told = f"from seed {seed}: {sum(block.runs for block in blocks)} runs, {failed} violations, {odd} unknown"
    return f'<span class="cell {kind}" title="{told}">{sign}</span>'
