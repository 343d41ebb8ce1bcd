"""How many events a session may have under way: its credits. HTTP/2's windows count bytes, and let thousands pass.

A session has a share of what the host takes at once, so that its memory is bounded whatever the number of sessions. It
is a power of two, so that it seldom changes; when it does, every stream hears the new number.
"""

from __future__ import annotations

from typing import Final

from host_agent.service.limits import CREDITS_MAX

#: Events that all sessions together may have under way, as long as each has ``CREDITS_MIN``.
CREDITS_TOTAL: Final = 1 << 20
#: What a session has at least.
CREDITS_MIN: Final = 64


def session_credits(sessions: int) -> int:
    """The credits of each of so many sessions: the largest power of two within its share, and within the limits."""
    share = CREDITS_TOTAL // max(1, sessions)
    return max(CREDITS_MIN, min(CREDITS_MAX, 1 << (share.bit_length() - 1) if share else 0))
