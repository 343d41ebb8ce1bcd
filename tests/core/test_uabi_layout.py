"""State in and out of an image whose layout is not that of the largest one.

Reference: arch/x86/kernel/fpu/xstate.c, xfeature_get_offset().
"""

from __future__ import annotations

import pytest

from fpu_core.realloc import Reallocated, realloc_guest_image
from fpu_core.swap import swap_in, swap_out
from fpu_core.uabi import Imported, copy_uabi_to_xstate, copy_xstate_to_uabi
from fpu_core.xfeature import XFEATURE_APX, XFEATURE_MASK_APX, XFEATURE_MASK_XTILE_DATA
from tests.core.rig import Rig, container, with_apx


@pytest.mark.parametrize("grown", [False, True], ids=["behind nothing", "behind tile data"])
def test_a_component_is_where_the_images_own_layout_has_it(grown: bool) -> None:
    """APX lies behind tile data where the image has room for that, and right there where it has not (bug B8)."""
    rig = Rig.create(with_apx())
    rig.permit()
    guest = rig.guest()
    if grown:
        assert isinstance(realloc_guest_image(rig.fpu, guest, XFEATURE_MASK_XTILE_DATA), Reallocated)
    swap_in(rig.fpu, guest)
    rig.cpu.write_register(XFEATURE_APX, 0, b"egpr")
    swap_out(rig.fpu, guest)
    buf = copy_xstate_to_uabi(rig.config, container(guest), 4096, XFEATURE_MASK_APX, 0)
    assert buf[960:964] == b"egpr"
    assert copy_uabi_to_xstate(rig.config, container(guest), buf) == Imported(None)
    swap_in(rig.fpu, guest)
    assert rig.cpu.read_register(XFEATURE_APX).startswith(b"egpr")
