"""What the tests of online training share."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_ppo


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a policy and a reward model, and a file of prompts; read only."""
    return tiny_ppo.write_world(tmp_path_factory.mktemp("world"))
