"""The state machine of tests/core/test_state_machine.py under the other allocation policies."""

from __future__ import annotations

import pytest

from tests.core import profiles
from tests.core.test_state_machine import CoreMachine


class OnWriteMachine(CoreMachine):
    """The same, growing in the intercept."""

    policy = "on_write"


class OnCpuidMachine(CoreMachine):
    """The same, growing when the CPUID is set."""

    policy = "on_cpuid"


class ThreeBufferMachine(CoreMachine):
    """The same, with everything copied."""

    policy = "three_buffer"


TestOnWrite = pytest.mark.timeout(900)(profiles.shorter(OnWriteMachine.TestCase))
TestOnCpuid = pytest.mark.timeout(900)(profiles.shorter(OnCpuidMachine.TestCase))
TestThreeBuffer = pytest.mark.timeout(900)(profiles.shorter(ThreeBufferMachine.TestCase))
