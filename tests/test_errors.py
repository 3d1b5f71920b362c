"""What says something of what was given, and what says nothing of it."""

import signal

import pytest

from reflow_tf.errors import Breakdown, InputError, failure_of


@pytest.mark.parametrize("code", [-signal.SIGKILL, 128 + signal.SIGKILL])
def test_a_program_that_was_killed_says_nothing_of_its_input(code):
    assert type(failure_of(code, "It must end.")) is Breakdown


@pytest.mark.parametrize("code", [1, 2, -signal.SIGSEGV, -signal.SIGABRT])
def test_one_that_failed_does(code):
    assert type(failure_of(code, "It must end.")) is InputError
