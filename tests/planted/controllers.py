"""Bugs of controllers: what they decide about, and how often."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Patch
from tests.planted.bug import Bug

BUGS: Final = (
    Bug(
        id="stale-view",
        title="A message that comes late puts an older view of an exit in the place of a newer one",
        checks=frozenset({"decides-on-newest", "decides-once", "decides-on-all"}),
        plan="late-news",
        patches=(
            Patch(
                "vmm_controller.desk",
                "        if view.update_revision <= latest:\n            return False\n",
                "",
            ),
        ),
    ),
    Bug(
        id="decides-again-and-again",
        title="A controller does not note that it has decided, and decides at every message",
        checks=frozenset({"decides-once"}),
        plan="controllers",
        patches=(
            Patch(
                "vmm_controller.desk",
                "        self._decided[key_of(view)] = view.generation\n",
                "        self._decided[key_of(view)] = view.generation - 1\n",
            ),
        ),
    ),
    Bug(
        id="exit-decided-once",
        title="A controller notes of an exit that it has decided, and not about which generation",
        checks=frozenset({"decides-on-all"}),
        plan="controllers",
        patches=(
            Patch(
                "vmm_controller.desk",
                "        return view if view.generation > self._decided.get(key, 0) else None\n",
                "        return None if key in self._decided else view\n",
            ),
        ),
    ),
)
