"""Ids: what may be part of a resource name."""

from __future__ import annotations

import re
from typing import Final

from host_agent.errors import invalid

_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")


def check_id(field: str, value: str) -> None:
    """Refuse an id that cannot be part of a resource name."""
    if not _ID.fullmatch(value):
        raise invalid(field, "an id: a letter a-z, then up to 62 of a-z, 0-9 and '-'", value)
