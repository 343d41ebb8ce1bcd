"""What the core raises, and what it returns, when a call cannot do what it was asked.

Two of the four kinds of failure start here. A *caller's mistake* is an exception; a result code the kernel would return
is an ``Errno`` value; *our bug* is a ``CoreBug``, raised by a check that is always on. Architectural events and exits
to userspace are ordinary values and live with the code that makes them.
"""

from __future__ import annotations

import enum
import errno


class Errno(enum.IntEnum):
    """A kernel result: 0 or the positive errno. The kernel returns these negated; so do we on the wire's KVM fields."""

    OK = 0
    EPERM = errno.EPERM
    E2BIG = errno.E2BIG
    ENOMEM = errno.ENOMEM
    EFAULT = errno.EFAULT
    EBUSY = errno.EBUSY
    ENODEV = errno.ENODEV
    EINVAL = errno.EINVAL
    ENOSPC = errno.ENOSPC
    EOPNOTSUPP = errno.EOPNOTSUPP


class FieldError(ValueError):
    """Input that cannot be right. ``field`` names it, ``expected`` says what would have been accepted.

    Raised before anything is changed.
    """

    def __init__(self, field: str, expected: str, got: object) -> None:
        super().__init__(f"{field}: expected {expected}, got {got!r}")
        self.field = field
        self.expected = expected
        self.got = got


class CoreBug(AssertionError):  # noqa: N818 -- it is named for what it is: our bug, not an error of a caller
    """A state that cannot happen did. The vCPU concerned must not run on."""


def core_assert(condition: object, what: str, *about: object) -> None:
    """Raise ``CoreBug`` unless ``condition``; unlike ``assert`` it is there under ``python -O`` too.

    ``what`` is put together with ``about`` (``str.format``) when it is needed, which is never.
    """
    if not condition:
        raise CoreBug(what.format(*about) if about else what)
