"""TRL 1.12's golden values through the production functions, and that deliberate mistakes are caught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from po_dynamics.errors import InputError
from po_dynamics.parity import advantages as trl_advantages
from po_dynamics.parity import ppo
from po_dynamics.parity import update as trl_update
from po_dynamics.parity.cases import Case
from po_dynamics.ppo import advantages
from po_dynamics.ppo import update as ppo_update

GOLDEN = Path(__file__).parents[1] / "golden" / "ppo"
TOLERANCE = 1e-6


def errors(folder: Path) -> dict[tuple[str, str], float]:
    return {(case, quantity): error for case, quantity, error in ppo.replay_ppo(folder)}


def test_every_case_and_level() -> None:
    found = errors(GOLDEN)
    assert {case for case, _ in found} == {"a_k1_base", "b_k3_whiten_rewards", "d_two_mini_batches"}
    for level in (1, 2, 3):
        assert any(quantity.startswith(f"level {level}") for _, quantity in found)
    assert max(found.values()) < TOLERANCE, {key: error for key, error in found.items() if error >= TOLERANCE}
    assert ("a_k1_base", "level 3: final/policy") in found


@pytest.fixture
def case_a(tmp_path: Path) -> Path:
    for suffix in (".json", ".npz"):
        shutil.copy(GOLDEN / f"a_k1_base{suffix}", tmp_path)
    return tmp_path


def _mistake_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score on the last token, where ours is."""
    for module in (trl_advantages, ppo):
        monkeypatch.setattr(module, "score_columns", lambda last, width: last.clamp(min=0))


def _mistake_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advantages, "kl_estimate", lambda logps, ref_logps, estimator="k1": ref_logps - logps)


def _mistake_bessel(monkeypatch: pytest.MonkeyPatch) -> None:
    whiten = advantages.whiten
    monkeypatch.setattr(
        advantages, "whiten", lambda v, m, shift_mean=True: whiten(v, m, shift_mean) * (1 - 1 / m.sum()) ** -0.5
    )


def _mistake_value_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ppo_update.value_terms
    for module in (ppo_update, trl_update):
        monkeypatch.setattr(module, "value_terms", lambda values, experience, clip: original(values, experience, None))


def _mistake_gradient_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Case.settings
    monkeypatch.setattr(Case, "settings", lambda self: settings(self).model_copy(update={"max_grad_norm": 1.0}))


def _mistake_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo_update, "learning_rate_factor", lambda *_: 1.0)


def _mistake_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    policy_pass = ppo_update.Update.policy_pass
    monkeypatch.setattr(
        ppo_update.Update, "policy_pass", lambda self, part, divisor, last: policy_pass(self, part, divisor * 1.1, last)
    )


def _mistake_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "steps_every", lambda self, update: 1)


@pytest.mark.parametrize(
    ("mistake", "quantity"),
    [
        (_mistake_score, "level 1: rewards_before_whitening"),
        (_mistake_kl, "level 1: kl"),
        (_mistake_bessel, "level 1: advantages"),
        (_mistake_value_clip, "level 2: vf_loss"),
        (_mistake_gradient_clipping, "level 3: final/policy"),
        (_mistake_learning_rate, "level 3: final/value"),
        (_mistake_coefficients, "level 3: grad_norm_accumulated"),
        (_mistake_step, "level 3: optimizer_stepped"),
    ],
)
def test_mistakes_are_caught(
    mistake: Callable[[pytest.MonkeyPatch], None], quantity: str, case_a: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    assert errors(case_a)["a_k1_base", quantity] > 100 * TOLERANCE


def _edit(folder: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> None:
    meta = json.loads((folder / "a_k1_base.json").read_text())
    with np.load(folder / "a_k1_base.npz") as stored:
        arrays = dict(stored)
    change(meta, arrays)
    (folder / "a_k1_base.json").write_text(json.dumps(meta))
    np.savez(folder / "a_k1_base.npz", **arrays)


def test_bad_cases_are_named(case_a: Path) -> None:
    _edit(case_a, lambda meta, arrays: arrays.pop("u1/returns"))
    with pytest.raises(InputError, match="u1/returns is missing"):
        errors(case_a)
    _edit(case_a, lambda meta, arrays: meta.update(world_size=2))
    with pytest.raises(InputError, match="world_size is 2"):
        errors(case_a)


def test_a_nan_is_an_error_not_a_pass(case_a: Path) -> None:
    def change(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["u0/returns"][0, 0] = np.nan

    _edit(case_a, change)
    assert errors(case_a)["a_k1_base", "level 1: returns"] == float("inf")
