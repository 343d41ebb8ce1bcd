"""The page of a timeline: ``fpstated sim timeline FILE -o page.html``."""

from __future__ import annotations

from fault_lab.pictures.html import asset, page
from fault_lab.pictures.recording import Recording
from fault_lab.pictures.timeline import Timeline
from fault_lab.pictures.window import PAGE_RECORDS, choose


def timeline_page(recording: Recording, first: int | None = None, last: int | None = None) -> str:
    """Draw records ``first`` to ``last``. Raises ``PictureError`` where there are no such records, or too many."""
    values = Timeline(recording, choose(recording, first, last, PAGE_RECORDS)).values()
    return page(
        f"{values['title']['name']}: timeline",
        body=asset("timeline.html"),
        styles=("page.css", "timeline.css"),
        scripts=("common.js", "shapes.js", "timeline.js", "walk.js"),
        data=values,
    )
