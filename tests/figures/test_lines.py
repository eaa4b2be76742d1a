"""Lines over steps: they can be told apart, and their labels do not overlap."""

import numpy as np
import pytest
from po_dynamics.figures import lines


def test_lines_differ_in_colour_dashes_and_marker():
    for group in (list(lines.COMPONENTS.values())[3:], [lines.PARENT, *lines.VARIANTS]):
        for field in ("colour", "marker"):
            assert len({getattr(line, field) for line in group}) == len(group)
        assert len({str(line.dashes) for line in group}) >= len(group) - 1


def test_labels_never_overlap_and_stay_near_their_lines():
    rng = np.random.default_rng(0)
    for _ in range(50):
        heights, sizes = np.sort(rng.random(6)), rng.choice([0.05, 0.1], 6)
        placed = lines.without_overlap(heights, sizes)
        assert (np.diff(placed) >= (sizes[1:] + sizes[:-1]) / 2 - 1e-12).all()
        assert abs(np.mean(placed - heights)) < 0.1
    assert lines.without_overlap([0.1, 0.5], [0.1, 0.1]) == pytest.approx([0.1, 0.5])
    assert lines.without_overlap([0.5, 0.5], [0.1, 0.1]) == pytest.approx([0.45, 0.55])
