"""Pages of a List call: the next token says after which key to go on, so a change in between loses nothing else."""

from __future__ import annotations

import base64
import binascii
import heapq
import json
from collections.abc import Callable, Iterable
from typing import TypeVar

from host_agent.service.errors import field_invalid
from host_agent.service.limits import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX

T = TypeVar("T")
#: What a list is sorted by: numbers and names, compared in order.
Key = tuple[int | str, ...]


def page(items: Iterable[T], key: Callable[[T], Key], *, size: int, token: str) -> tuple[list[T], str]:
    """Return one page in the order of ``key`` and the next page's token, empty on the last page.

    ``size`` 0 is the default, more than the maximum is the maximum. Raises ``Failure`` for a negative size and for a
    token that is not of this list.
    """
    if size < 0:
        raise field_invalid("page_size", "0 or more", size)
    limit = min(size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
    after = _decoded(token) if token else None
    try:
        found = heapq.nsmallest(limit + 1, (item for item in items if after is None or key(item) > after), key=key)
    except TypeError as error:  # a key of another list: names where numbers are compared
        raise field_invalid("page_token", "next_page_token of the page before", token) from error
    more = len(found) > limit
    return found[:limit], _encoded(key(found[limit - 1])) if more else ""


def _encoded(key: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _decoded(token: str) -> Key:
    try:
        key = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise field_invalid("page_token", "next_page_token of the page before", token) from error
    if not isinstance(key, list) or not key or not all(isinstance(part, int | str) for part in key):
        raise field_invalid("page_token", "next_page_token of the page before", token)
    return tuple(key)
