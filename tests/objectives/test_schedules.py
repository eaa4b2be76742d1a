"""The learning rate as a function of the step."""

import pytest
import torch
from po_dynamics.objectives.schedules import learning_rate_factor


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_schedules_are_those_of_transformers(name):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler("constant_with_warmup" if name == "constant" else name, optimizer, 3, 20)
    for step in range(20):
        assert learning_rate_factor(step, name, 3, 20) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


# ------------------------------------------------------------------------------------------------------------ bad input


def test_past_the_last_step_nothing_grows():
    assert [learning_rate_factor(30, name, 3, 20) for name in ("constant", "linear", "cosine")] == [1.0, 0.0, 0.0]
