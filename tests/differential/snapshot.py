"""A container as the recorded data writes one down."""

from __future__ import annotations

from fpu_core.fpstate import Fpstate


def container_of(fpstate: Fpstate, name: str) -> dict[str, object]:
    """Return ``fpstate`` in the form of the data's ``fpu.fpstate`` and ``guest.fpstate``."""
    return {
        "id": name,
        "size": fpstate.size,
        "user_size": fpstate.user_size,
        "xfeatures": hex(fpstate.xfeatures),
        "user_xfeatures": hex(fpstate.user_xfeatures),
        "xfd": hex(fpstate.xfd),
        "is_valloc": int(fpstate.is_valloc),
        "is_guest": int(fpstate.is_guest),
        "in_use": int(fpstate.in_use),
        "xstate_bv": hex(fpstate.xstate_bv),
        "xcomp_bv": hex(fpstate.xcomp_bv),
    }
