"""The page on which a graph of states is walked: ``fpstated sim explorer GRAPH -o page.html``."""

from __future__ import annotations

from fault_lab.pictures.graph import read_graph
from fault_lab.pictures.html import asset, page


def explorer_page(text: str) -> str:
    """Make the page of a graph's JSON. Raises ``PictureError`` for what is no graph."""
    values = read_graph(text)
    return page(
        f"{values['name']}: states",
        body=asset("explorer.html"),
        styles=("page.css", "explorer.css"),
        scripts=("common.js", "explorer.js"),
        data=values,
    )
