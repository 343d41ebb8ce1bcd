"""The host of tests/test_machine_properties.py under the other allocation policies."""

from __future__ import annotations

import pytest

from tests.core import profiles
from tests.test_machine_properties import HostRules


class OnWriteRules(HostRules):
    """The same, growing in the intercept."""

    policy = "on_write"


class OnCpuidRules(HostRules):
    """The same, growing when the CPUID is set."""

    policy = "on_cpuid"


class ThreeBufferRules(HostRules):
    """The same, with everything copied."""

    policy = "three_buffer"


TestOnWrite = pytest.mark.timeout(900)(profiles.shorter(OnWriteRules.TestCase))
TestOnCpuid = pytest.mark.timeout(900)(profiles.shorter(OnCpuidRules.TestCase))
TestThreeBuffer = pytest.mark.timeout(900)(profiles.shorter(ThreeBufferRules.TestCase))
