"""Layouts and sizes of the built-in processors, against what real ones report and what Linux computes."""

from __future__ import annotations

import pytest

from fpu_core.config import boot
from fpu_core.cpuid import builtin_profile, builtin_profile_names
from fpu_core.errors import FieldError
from fpu_core.fpstate import FPSTATE_HEADER_BYTES, guest_fpstate, task_fpstate
from fpu_core.layout import FXSAVE_SIZE_BYTES, ComponentTable
from fpu_core.rules import KERNEL_6_12, KERNEL_6_18
from fpu_core.xfeature import (
    XFEATURE_MASK_APX,
    XFEATURE_MASK_BNDREGS,
    XFEATURE_MASK_CET_KERNEL,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_LBR,
    XFEATURE_MASK_USER_DYNAMIC,
    XFEATURE_MASK_XTILE,
    XFEATURE_MASK_XTILE_DATA,
    XFEATURE_MASK_YMM,
    format_mask,
)
from tests.core.rig import SPR, without_compaction

SPR_TABLE = ComponentTable.from_profile(builtin_profile(SPR))


# Source: CPUID.0xD of Sapphire Rapids; 2816 and 8192 are also what KVM's amx_test.c asserts.
@pytest.mark.parametrize(
    ("nr", "size_bytes", "std_offset", "align64"),
    [
        pytest.param(0, 160, 0, False, id="x87 is bytes 0..159 of the legacy region, as Linux counts"),
        pytest.param(1, 256, 160, False, id="SSE is the 16 XMM registers"),
        pytest.param(2, 256, 576, False, id="YMM follows the header"),
        pytest.param(5, 64, 1088, False, id="opmask"),
        pytest.param(6, 512, 1152, False, id="ZMM_Hi256"),
        pytest.param(7, 1024, 1664, False, id="Hi16_ZMM"),
        pytest.param(9, 8, 2688, False, id="PKRU takes 8 bytes"),
        pytest.param(10, 8, None, False, id="PASID has no standard offset"),
        pytest.param(17, 64, 2752, True, id="XTILE_CFG is aligned to 64"),
        pytest.param(18, 8192, 2816, True, id="XTILE_DATA is at 2816 and 8192 bytes large"),
    ],
)
def test_component(nr: int, size_bytes: int, std_offset: int | None, align64: bool) -> None:
    """Sapphire Rapids reports each component with this size, offset and alignment."""
    component = SPR_TABLE.components[nr]
    assert (component.size_bytes, component.std_offset, component.align64) == (size_bytes, std_offset, align64)


def test_only_tile_data_can_be_disarmed() -> None:
    """XTILE_DATA is the one component with the XFD flag, in the processor and in the kernel's mask."""
    capable = sum(1 << nr for nr, component in SPR_TABLE.components.items() if component.xfd_capable)
    assert capable == XFEATURE_MASK_XTILE_DATA == XFEATURE_MASK_USER_DYNAMIC


# Source: xstate_calculate_size() of Linux 6.12 on the CPUID dumps of these processors, and its 6.17 guest defaults.
@pytest.mark.parametrize(
    ("name", "kernel_default", "kernel_max", "user_default", "user_max", "guest_default"),
    [
        pytest.param("sapphire-rapids", 2560, 10752, 2816, 11008, 2560, id="Sapphire Rapids: 2560 grows to 10752"),
        pytest.param("granite-rapids", 2560, 10752, 2816, 11008, 2560, id="Granite Rapids: as Sapphire Rapids"),
        pytest.param("ice-lake", 2440, 2440, 2696, 2696, 2440, id="Ice Lake: PKRU is last"),
        pytest.param(
            "skylake-sp", 2560, 2560, 2688, 2688, 2560, id="Skylake-SP: MPX leaves a gap in the standard format"
        ),
        pytest.param("zen4", 2456, 2480, 2440, 2440, 2480, id="Zen 4: CET_KERNEL is the guest's alone"),
        pytest.param("goldmont", 704, 704, 1088, 1088, 704, id="Goldmont: MPX and no AVX"),
    ],
)
def test_sizes(
    name: str, kernel_default: int, kernel_max: int, user_default: int, user_max: int, guest_default: int
) -> None:
    """Each built-in processor leads to these image sizes, in bytes."""
    config = boot(builtin_profile(name))
    assert (config.kernel.default_size, config.kernel.max_size) == (kernel_default, kernel_max)
    assert (config.user.default_size, config.user.max_size) == (user_default, user_max)
    assert config.guest_default_size == guest_default


def test_there_are_six_processors() -> None:
    """The table above speaks of every built-in processor."""
    assert builtin_profile_names() == [
        "goldmont",
        "granite-rapids",
        "ice-lake",
        "sapphire-rapids",
        "skylake-sp",
        "zen4",
    ]


@pytest.mark.parametrize(
    ("mask", "compacted", "standard"),
    [
        pytest.param(0, 576, 576, id="nothing: legacy region and header"),
        pytest.param(XFEATURE_MASK_FPSSE, 576, 576, id="x87 and SSE are in the legacy region"),
        pytest.param(XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM, 832, 832, id="AVX"),
        pytest.param(1 << 5, 640, 1152, id="opmask alone: compacted right behind the header"),
        pytest.param(XFEATURE_MASK_XTILE, 8832, 11008, id="tiles alone"),
        pytest.param(1 << 9 | XFEATURE_MASK_XTILE_DATA, 8832, 11008, id="tile data behind PKRU is aligned to 64"),
        pytest.param(0x61CE7, 10752, None, id="everything with supervisor state: 2560 + 8192"),
        pytest.param(0x602E7, 10752, 11008, id="without supervisor state it is the same: CET hides in the gap"),
    ],
)
def test_calculate_size(mask: int, compacted: int, standard: int | None) -> None:
    """Size of an image of a mask in both formats."""
    assert SPR_TABLE.calculate_size(mask, compacted=True) == compacted
    if standard is not None:
        assert SPR_TABLE.calculate_size(mask, compacted=False) == standard


def test_compacted_offsets_depend_on_the_mask() -> None:
    """The same component lies elsewhere in every layout, so an offset is asked of an image's own XCOMP_BV (bug B8)."""
    everything = SPR_TABLE.offsets(0x61EE7 | XFEATURE_MASK_CET_KERNEL, compacted=True)
    assert [everything[nr] for nr in (2, 5, 6, 7, 9, 10, 11, 12, 17, 18)] == [
        576, 832, 896, 1408, 2432, 2440, 2448, 2464, 2496, 2560,
    ]  # fmt: skip
    assert SPR_TABLE.offset(XFEATURE_MASK_XTILE, 18, compacted=True) == 640


def test_compacted_question_on_a_host_without_the_format() -> None:
    """Without XSAVEC the kernel answers with the standard offset of the topmost component, plus its size."""
    table = ComponentTable.from_profile(without_compaction())
    assert not table.compacted
    assert table.calculate_size(1 << 5, compacted=True) == table.calculate_size(1 << 5, compacted=False) == 1152


def test_unknown_component_is_named() -> None:
    """A question about a component the processor lacks is refused with the field and the number."""
    with pytest.raises(FieldError, match=r"xfeature: .* got 3"):
        SPR_TABLE.calculate_size(XFEATURE_MASK_BNDREGS, compacted=True)


def test_host_without_xsave_uses_fxsave() -> None:
    """Without XSAVE an image is the 512 bytes of FXSAVE, and holds x87 and SSE."""
    config = boot(without_compaction(xsave=False))
    assert not config.xsave
    assert config.kernel.max_size == config.user.max_size == config.guest_default_size == FXSAVE_SIZE_BYTES
    assert config.kernel.max_features == config.user.max_features == 0, "those masks are XSAVE's"
    assert config.legacy_features == XFEATURE_MASK_FPSSE


def test_kernel_rules_differ_in_the_features_they_know() -> None:
    """6.12 knows neither CET_KERNEL nor APX; everything else of Sapphire Rapids is the same."""
    old, new = (boot(builtin_profile(SPR), rules) for rules in (KERNEL_6_12, KERNEL_6_18))
    differing = old.kernel.max_features ^ new.kernel.max_features
    assert differing == XFEATURE_MASK_CET_KERNEL, format_mask(differing)
    assert old.guest_default_features == old.kernel.default_features
    assert new.guest_default_features == new.kernel.default_features | XFEATURE_MASK_CET_KERNEL
    assert not new.kernel.max_features & XFEATURE_MASK_APX


def test_no_default_image_has_dynamic_or_independent_state() -> None:
    """Tile data and LBR are in no container that anybody starts with (bug B9)."""
    config = boot(builtin_profile(SPR))
    for fpstate in (task_fpstate(config), guest_fpstate(config, bytearray(config.guest_default_size))):
        assert not fpstate.xfeatures & (XFEATURE_MASK_USER_DYNAMIC | XFEATURE_MASK_LBR)
        assert fpstate.size == config.kernel_size(fpstate.xfeatures)
    assert config.independent_features == XFEATURE_MASK_LBR


def test_xfd_at_the_start() -> None:
    """A task starts with every dynamic feature disabled; a guest with XFD 0, the architectural reset value."""
    config = boot(builtin_profile(SPR))
    assert task_fpstate(config).xfd == XFEATURE_MASK_XTILE_DATA
    guest = guest_fpstate(config, bytearray(config.guest_default_size))
    assert guest.xfd == 0
    assert guest.allocated_bytes == config.guest_default_size + FPSTATE_HEADER_BYTES == 2624
