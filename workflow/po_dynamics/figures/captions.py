"""What is under the figures: what is shown, n, seeds, steps and intervals, and what would contradict the paper."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

SOURCE = "Reproduces Figure {number} of version 1 of the paper (arXiv 2512.00778)."
_ALIGNMENT_CLAIMS = {
    ("dpo", "heldout"): f"""{SOURCE.format(number=1)} The paper's reading: G of TOT stays positive, so the targets
        are stable; POS leads early with NEG against it, and the two exchange signs later; a larger weight ω does
        not mean a larger G. It would be contradicted by a TOT at or below 0 for most of the training, by POS and
        NEG that keep their signs, and by TOP > MID > BOT throughout.""",
    ("ppo", "heldout"): f"""{SOURCE.format(number=2)} The paper's reading: G of TOT stays near 0, slightly negative
        and small beside its own components; POS is positive and NEG negative throughout; TOP and MID are negative,
        TOP more so, and BOT is near 0. It would be contradicted by a TOT that is clearly positive or as large as
        POS or NEG, by changes of sign in POS or NEG, and by a BOT as far from 0 as TOP.""",
    ("dpo", "train"): f"""{SOURCE.format(number="7(b)")} The paper's reading: with final responses to the training
        prompts, POS and NEG do not exchange their roles. It would be contradicted by an exchange of signs as with
        held-out prompts.""",
}
_WIN_RATE_CLAIMS = {
    "offline": """the ablations (no NEG early, no POS late) lie below DPO, and some cDPO above DPO's peak, falling
        late""",
    "online": """no TOP lies below PPO and no MID is unstable; scaling TOP down does more good, and depends less on
        λ, than scaling MID; hPPO lies above PPO""",
}
_PARTS = {
    "offline": "(b) the chosen (POS) and rejected (NEG) responses; (c) pairs by thirds of the weight ω",
    "online": "(b) tokens with advantage ≥ 0 (POS) and < 0 (NEG); (c) tokens by thirds of |Â|",
}


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def span(values: pd.Series) -> str:
    """The value, or "low to high"."""
    low, high = values.min(), values.max()
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def seeds(values: Iterable[int]) -> str:
    ordered = sorted(set(values))
    return f"one seed ({ordered[0]})" if len(ordered) == 1 else f"{len(ordered)} seeds ({', '.join(map(str, ordered))})"


def alignment(table: pd.DataFrame, objective: str, family: str, label: str, filtered: bool, linear: float) -> str:
    """Of Figures 1, 2 and 7(b); `table` holds the rows that are drawn. The paper speaks of DPO and PPO only."""
    claim = _ALIGNMENT_CLAIMS.get((objective, table["final_set"].iloc[0]), "")
    total = table[table["component"] == "TOT"]
    prompts = {"heldout": "held-out prompts", "train": "training prompts"}[table["final_set"].iloc[0]]
    outliers = f"{span(total['n_outliers'])} outliers left out" if filtered else "outliers included"
    lines = ", thin lines the seeds, thick lines their mean" if total["seed"].nunique() > 1 else ""
    return _flow(
        f"""Gradient alignment G of {label} on {table["model"].iloc[0]} at
        {plural(total["step"].nunique(), "checkpoint")}, {seeds(total["seed"])}: the inner product of the gradient
        of the loss with that of the negative log-likelihood of the run's final responses, to {prompts}. G > 0: a
        step on this component makes the final responses likelier. (a) The whole objective (TOT); {_PARTS[family]}:
        TOP, MID and BOT. Symmetric-log scale, linear within ±{linear:.0e}. Bands: 95 % bootstrap intervals over
        the {span(total["n_batches"])} mini-batches of a checkpoint ({outliers}), one per seed{lines}. ¶ {claim}"""
    )


def advantages(table: pd.DataFrame, label: str) -> str:
    """Of Figure 3."""
    return _flow(
        f"""Mean advantage of the tokens of fresh roll-outs of {label} on {table["model"].iloc[0]},
        {seeds(table["seed"])}, by thirds of |Â| at each checkpoint ({span(table["n"])} tokens in a group). (a) As
        estimated (GAE), signed, in units of reward; (b) after whitening, which is what the loss uses and the
        thirds are made of. ¶ {SOURCE.format(number=3)} The paper's reading: MID is positive on average and TOP
        negative. It would be contradicted by a TOP that is positive, or a MID that is negative, for most of the
        training."""
    )


def win_rates(table: pd.DataFrame, families: Iterable[str]) -> str:
    """Of Figure 4."""
    repeated = table.groupby(["run", "step"]).size().max() > 1
    return _flow(
        f"""Win rate over the SFT model's responses on {table["model"].iloc[0]}, judge “{table["judge"].iloc[0]}”,
        both orders, {span(table["n"])} prompts a checkpoint; 50 % is a draw. Bands: 95 % bootstrap intervals over
        prompts, one per seed{", thin lines the seeds, thick lines their mean" if repeated else ""}; they do not
        cover the training's own randomness, and for the difference of two runs the paired column of the results
        table is sharper. Dotted grey: the uncontrolled run. ¶ {SOURCE.format(number=4)} The paper's reading:
        {"; ".join(_WIN_RATE_CLAIMS[family] for family in sorted(families))}. Lines in another order, with paired
        intervals that exclude 0, would contradict it; where intervals overlap much, this experiment is too small
        to tell."""
    )


def prediction(table: pd.DataFrame, correlations: pd.DataFrame, label: str) -> str:
    """Of the predictive check; `correlations` by predictor."""
    names = {"predicted": "G", "predicted_adamw": "the AdamW-aware G"}
    found = [
        f"{rho:.2f} ({low:.2f} to {high:.2f}) for {names[str(name)]}"
        for name, (rho, low, high) in correlations[["rho", "low", "high"]].dropna().iterrows()
    ]
    return _flow(
        f"""Change of the negative log-likelihood of the final responses of {label} on {table["model"].iloc[0]}
        between neighbouring checkpoints, per step, against what the mean alignment of the two predicts to first
        order; {plural(len(table), "pair")} of checkpoints, {seeds(table["seed"])}, a marker per seed, colour the
        earlier checkpoint. Spearman's ρ with 95 % bootstrap interval: {"; ".join(found) or "too few pairs"}. ¶ If
        G means what its definition says, the dots rise from left to right; ρ near 0 or below would contradict
        that, and with it any reading of the signs of G over gaps as long as these between checkpoints."""
    )


def training(label: str, model: str, of_seeds: Iterable[int], steps: int, window: int) -> str:
    """Of a run's training curves."""
    return _flow(
        f"""Training curves of {label} on {model}, {seeds(of_seeds)}, over {plural(steps, "step")}: thin lines as
        logged, one per seed; thick lines their mean, smoothed over {plural(window, "logged step")}."""
    )


def _flow(text: str) -> str:
    """One line per paragraph; "¶" parts them."""
    return "\n".join(" ".join(part.split()) for part in text.split("¶")).strip()
