"""The search modes by their names."""

from __future__ import annotations

from typing import Final

from fault_lab.search.run import MODES as _KNOWN
from fault_lab.search.run import mode_name

MODES: Final = {mode_name(mode): mode for mode in _KNOWN}
