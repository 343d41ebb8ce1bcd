"""Every planted bug by its id. Data only; nothing here imports what is patched."""

from __future__ import annotations

from typing import Final

from tests.planted import controllers, decisions, durable, kernel, memory, numbers, retries
from tests.planted.bug import Bug

_THEMES: Final = (decisions, retries, numbers, durable, memory, controllers, kernel)

BUGS: Final[dict[str, Bug]] = {bug.id: bug for theme in _THEMES for bug in theme.BUGS}
assert len(BUGS) == sum(len(theme.BUGS) for theme in _THEMES), "two bugs have one id"
