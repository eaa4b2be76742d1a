"""Log-probs of chosen, rejected and final responses, and how the gradients of both parts entangle."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from po_dynamics.dynamics.alignment import Probe


def logps(probe: Probe) -> pd.DataFrame:
    """Squeezing: `…, kind, logp, per_token, n`: mean log-prob per response and per token (nats), n responses.

    Kinds: `chosen`, `rejected`, `rollout` (of D), `<role>_argmax` (the most probable token at every position, teacher
    forced), `greedy` (D′).
    """
    scores, rows = probe.tables.scores, []
    for role, group in scores.groupby("role"):
        n = group["sample_id"].nunique()
        for kind, column in ((role, "logprob"), (f"{role}_argmax", "argmax_logprob")):
            rows.append({"kind": kind, "logp": group[column].sum() / n, "per_token": group[column].mean(), "n": n})
    final = probe.tables.batches.query("set == 'final'")
    n = int(final["n"].sum())
    rows.append(
        {"kind": "greedy", "logp": -float(np.average(final["loss"], weights=final["n"])), "per_token": math.nan, "n": n}
    )
    return pd.DataFrame([{**probe.keys, **row} for row in rows])


def entanglement(probe: Probe) -> pd.DataFrame:
    """`…, batch, inner, positive_norm, negative_norm, cosine, entangled` per mini-batch (arXiv 2410.13828).

    g⁺ and g⁻ are the ascent directions of the positive and of the negative part's log-probs, so inner is
    −⟨∇L_POS, ∇L_NEG⟩. With inner > ‖g⁺‖² a step of DPO lowers the chosen log-prob, with inner > ‖g⁻‖² it raises the
    rejected one: `entangled` says whether either holds.
    """
    batches = probe.tables.batches.query("set == 'train' and segment == 'all'")
    by_name = {name: rows.set_index("batch") for name, rows in batches.groupby("component")}
    if "POS" not in by_name:  # no mini-batch was measured
        return pd.DataFrame()
    table = pd.DataFrame({"inner": -by_name["TOT"]["inner"].dropna()})  # of the mini-batches that were measured
    table["positive_norm"], table["negative_norm"] = by_name["POS"]["grad_norm"], by_name["NEG"]["grad_norm"]
    norms = table["positive_norm"] * table["negative_norm"]
    table["cosine"] = (table["inner"] / norms.where(norms > 0)).fillna(0.0)
    table["entangled"] = table["inner"] > table[["positive_norm", "negative_norm"]].min(axis=1) ** 2
    return pd.DataFrame([{**probe.keys, **row} for row in table.reset_index().to_dict("records")])
