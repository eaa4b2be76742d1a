"""The page's numbers are those of the tables, and nothing else of the page changes."""

import pandas as pd
import pytest
from po_dynamics.errors import InputError
from po_dynamics.validation.__main__ import BEGIN, END, block, rewrite


@pytest.fixture
def tables(tmp_path):
    score = {"model": "m", "run": "dpo", "score": "plain", "rho": 0.4321, "low": 0.1, "high": 0.7}
    score |= {"low_responses": 0.3, "high_responses": 0.5, "n": 40, "n_responses": 240}
    agreement = {
        "model": "m",
        "run": "dpo",
        "outcome": "change",
        "predictor": "predicted_adamw",
        "rho": 0.9,
        "low": 0.8,
    }
    agreement |= {
        "high": 0.95,
        "signs": 0.75,
        "n_resolved": 8,
        "slope": 1.1,
        "slope_low": 0.9,
        "slope_high": 1.3,
        "n": 10,
    }
    effect = {"model": "m", "run": "dpo", "step": 25, "next_step": 50, "component": "POS", "predicted": 0.1}
    effects = [{**effect, "seed": s, "change": 0.5 + s, "predicted_adamw": 1.0, "win_change": -2.0} for s in range(3)]
    for name, rows in (("scores", [score]), ("agreement", [agreement]), ("effects", effects)):
        pd.DataFrame(rows).to_csv(tmp_path / f"validation_{name}.csv", index=False)
    return tmp_path


def test_numbers_stand_in_the_page_and_the_prose_stays(tables, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nbefore\n{BEGIN}\nold 0.99\n{END}\nafter\n")
    rewrite(page, block(tables))
    text = page.read_text()
    assert text.startswith("# Title\n\nbefore\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old 0.99" not in text
    assert "| G, all checkpoints | 0.43 | 0.10 to 0.70 | 0.30 to 0.50 |" in text
    assert "| dpo | NLL of D′ | AdamW's | 0.90 (0.80 to 0.95) | 6 of 8 | 1.10 (0.90 to 1.30) |" in text
    assert "| dpo | 25 to 50 | POS | +1.500 [+0.500, +2.500] | +1.000 [+1.000, +1.000] |" in text
    rewrite(page, block(tables))
    assert page.read_text() == text


def test_a_page_without_marks_and_missing_tables_are_refused(tables, tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(InputError, match="needs one line"):
        rewrite(tmp_path / "page.md", "numbers")
    with pytest.raises(InputError, match=r"validation_effects.csv does not exist; run `make validate`"):
        block(tmp_path / "elsewhere")
