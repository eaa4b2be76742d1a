"""The golden values of TRL's DPOTrainer, replayed; and that a wrong value is noticed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from po_dynamics.parity import __main__ as parity
from po_dynamics.parity.dpo import LOGPS, META, RUN, replay_dpo

GOLDEN = Path(__file__).parents[1] / "golden" / "dpo"


def altered(folder, file, key, change):
    folder.mkdir()
    with np.load(GOLDEN / file) as golden:
        arrays = dict(golden)
    assert key in arrays
    arrays[key] = change(arrays[key])
    np.savez(folder / file, **arrays)
    shutil.copy(GOLDEN / META, folder / META)
    return folder


def test_golden_values():
    errors = list(replay_dpo(GOLDEN))
    quantities = {(case.split()[-1], quantity) for case, quantity, _ in errors}
    for beta in ("beta0.05", "beta0.1", "beta0.5"):
        for quantity in ("loss_per_pair", "grad_token_logps", "scaled_0.3_1.7/grad_token_logps", "mean_logps_chosen"):
            assert (beta, quantity) in quantities
    for quantity in ("policy_token_logps", "loss", "grad_norm", "mean_rewards_margins", "weights_after", "lr_logged"):
        assert ("run", quantity) in quantities
    assert max(error for _, _, error in errors) < 1e-6


@pytest.mark.parametrize(
    ("file", "key", "quantity"),
    [
        (LOGPS, "beta0.1/loss", "loss"),
        (LOGPS, "beta0.5/grad_token_logps", "grad_token_logps"),
        (LOGPS, "beta0.5/scaled_0.3_1.7/grad_token_logps", "scaled_0.3_1.7/grad_token_logps"),
        (RUN, "step2/weights_after/gpt_neox.final_layer_norm.weight", "weights_after"),
        (RUN, "step1/grad_norm", "grad_norm"),
        (RUN, "step1/policy_token_logps", "policy_token_logps"),
    ],
)
def test_a_wrong_value_is_noticed(tmp_path, capsys, file, key, quantity):
    folder = altered(tmp_path / "case", file, key, lambda value: value * 1.0001)
    assert parity.main([str(tmp_path)]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if "> 1e-06" in line]
    assert [line.split()[0] for line in bad] == [quantity], folder


def test_nan_is_an_error(tmp_path):
    altered(tmp_path / "case", LOGPS, "beta0.1/loss", lambda value: value * np.nan)
    assert parity.main([str(tmp_path)]) == 1


def test_other_beta_and_rate_are_read_from_the_case(tmp_path):
    folder = altered(tmp_path / "case", RUN, "step0/loss", lambda value: value)
    meta = json.loads((folder / META).read_text())
    meta["config"]["beta"] = 0.21
    (folder / META).write_text(json.dumps(meta))
    assert any(error > 1e-4 for _, _, error in replay_dpo(folder))


def test_command(capsys):
    assert parity.main([str(GOLDEN.parent / "dpo")]) == 0
    assert "within 1e-06" in capsys.readouterr().out


def test_nothing_to_replay(tmp_path, capsys):
    assert parity.main([str(tmp_path)]) == 1
    assert "no golden case found" in capsys.readouterr().err
    assert parity.main([str(tmp_path / "absent")]) == 1
    assert "is not a directory" in capsys.readouterr().err
