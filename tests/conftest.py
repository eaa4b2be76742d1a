"""One thread per process, before torch is imported: forked children hang on OpenMP's threads otherwise."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator

import pytest


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps precision and processes in a singleton; the next test may want others."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
