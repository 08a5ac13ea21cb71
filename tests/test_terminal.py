import os

import pytest

from tsae_lab import terminal


@pytest.mark.parametrize(
    ("wanted", "environment", "expected"), [(3, "2", 3), (0, "2", 2), (0, "4,2", 4), (0, "x", None)]
)
def test_threads_are_those_wanted_then_those_of_the_environment_then_all(
    monkeypatch, wanted, environment, expected
):
    monkeypatch.setenv("OMP_NUM_THREADS", environment)
    assert terminal.cpu_threads(wanted) == (expected or os.cpu_count())
