"""Gradient alignment G of components and segments, with intervals, from probe tables; on a CPU, without a model.

    G = −Σ_t c_t s_t · N / N_kept over the mini-batches kept,   a component being a mask on the tokens

`tabulate` makes `dynamics.parquet` of an experiment; `reslice` and `python -m po_dynamics.dynamics` answer what another
β, schedule, grouping, outlier fence or partition of the layers would have given, in seconds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from po_dynamics.dynamics.coefficients import Terms, batch_sizes, component_masks, reweight
from po_dynamics.dynamics.segments import ALL, check, thirds
from po_dynamics.dynamics.tables import Tables
from po_dynamics.objectives.registry import OBJECTIVES, bind

KEYS = ["model", "run", "seed", "step", "final_set"]
COLUMNS = [*KEYS, "component", "segment", "filtered", "G", "G_low", "G_high", "cosine", "grad_norm", "n_batches"]
COLUMNS += [
    "n_outliers",
    "reverse_forward_rel_diff",
    "p_value",
    "share_positive",
    "sign_p",
    "G_adamw",
    "loss",
    "loss_rose",
    "equal_weights",
    "v_norm",
]
DRAWS = 2000  # bootstrap samples


class Options(NamedTuple):
    """How a table is sliced; None keeps what the probe used."""

    objective: str | None = None
    parameters: Mapping[str, Any] | None = None
    groups: int = 3
    fence: float = 1.5  # outlier: above Q3 + fence · (Q3 − Q1)
    per_component: bool = False  # an outlier mask per component breaks TOT = POS + NEG
    segments: Mapping[str, Sequence[str]] | None = None
    level: float = 0.95
    seed: int = 0


OPTIONS = Options()


class Probe(NamedTuple):
    """One probed checkpoint and where it is from."""

    keys: dict[str, Any]  # model, run, seed, step, final_set
    tables: Tables


# ------------------------------------------------------------------------------------------------- one checkpoint: G


def dynamics(probe: Probe, options: Options = OPTIONS) -> pd.DataFrame:
    """Rows of `dynamics.parquet` of one checkpoint.

    Every component of the whole model comes from the token scores; segments of TOT, POS and NEG (and of what else the
    probe made apart) from the reverse pass. With another objective or parameters than probed there are no norms, no
    cosines and no segments, and the outliers stay those of the probed objective. `equal_weights` marks a checkpoint
    where all weights are the same, so that groups by weight mean nothing (step 0 of DPO: every ω is β/2). `grad_norm`
    is a mean of norms, of the gradients of mini-batches; `v_norm` is the norm of a mean, of the whole of D′.
    """
    content = probe.tables
    terms = terms_of(content, options)
    masks = component_masks(content.scores, terms.weight, options.groups)
    n_B = batch_sizes(content.scores)
    dots = batch_dots(content.scores, terms.coefficient, masks, n_B)
    reverse = Reverse.of(content, n_B, {} if _changed(options) else _partition(content, options))
    rows = []
    for filtered in (False, True):
        kept = keep_masks(reverse, list(masks), options) if filtered else {}
        difference = _difference(content, kept.get("TOT"))
        for name in masks:
            keep_B = kept.get(name, np.ones(len(n_B), dtype=bool))
            for segment in (ALL, *reverse.v_norms):
                part = None if _changed(options) else reverse.parts.get((name, segment))
                if segment == ALL or part is not None:
                    whole = dots[name] if part is None or segment == ALL else part.dot
                    row = _row(whole, part, n_B, keep_B, options)
                    rows.append({**row, **_labels(name, segment, filtered, keep_B, difference)})
    v_norms = {**reverse.v_norms, ALL: content.metadata["v_norms"][ALL]}
    of_checkpoint = {"loss": _loss(content), "equal_weights": _equal(terms.weight)}
    return pd.DataFrame([{**probe.keys, **row, **of_checkpoint, "v_norm": v_norms[row["segment"]]} for row in rows])


def terms_of(content: Tables, options: Options) -> Terms:
    """Coefficients and weights: as stored, or of the objective and parameters of the options."""
    if not _changed(options):
        stored = content.scores["coefficient"].to_numpy(), content.scores["weight"].to_numpy()
        return Terms(*stored, np.full(len(content.scores), math.nan))
    about = content.metadata
    name = options.objective or about["objective"]
    known = OBJECTIVES[name].parameters if name in OBJECTIVES else {}
    inherited = {key: value for key, value in about["parameters"].items() if key in known}
    objective = bind(name, inherited | dict(options.parameters or {}), about["family"])
    return reweight(content.scores, objective, about["step"])


def _changed(options: Options) -> bool:
    return options.objective is not None or bool(options.parameters)


def _equal(weight: np.ndarray) -> bool:
    """Whether all weights are the same but for rounding."""
    return bool(np.ptp(weight) <= 1e-9 * np.abs(weight).max())


def batch_dots(
    scores: pd.DataFrame, coefficient: np.ndarray, masks: Mapping[str, np.ndarray], n_B: pd.Series
) -> dict[str, np.ndarray]:
    """⟨v, gradient of the mini-batch's own mean loss⟩ of each component, in the order of `n_B`."""
    batch = pd.Index(n_B.index).get_indexer(scores["batch"])
    terms = -coefficient * scores["score"].to_numpy(np.float64)
    scale_B = n_B.sum() / n_B.to_numpy()
    return {name: np.bincount(batch[mask], terms[mask], minlength=len(n_B)) * scale_B for name, mask in masks.items()}


class Part(NamedTuple):
    """What the reverse pass measured of a component in a segment, by mini-batch."""

    dot: np.ndarray
    norm: np.ndarray
    adamw: np.ndarray
    v_norm: float


class Reverse(NamedTuple):
    """Measured parts by (component, segment), the whole under ALL; ‖v‖ of the segments."""

    parts: dict[tuple[str, str], Part]
    v_norms: dict[str, float]

    @classmethod
    def of(cls, content: Tables, n_B: pd.Series, partition: Mapping[str, Sequence[str]]) -> Reverse:
        """Joins the units that were measured (embeddings, single layers, head) to the segments of `partition`.

        The gradients of different units have no parameter in common, so inner products and squared norms add up.
        """
        measured = _measured(content.batches, n_B)
        squares = {unit: norm**2 for unit, norm in content.metadata["v_norms"].items()}
        v_norms = {name: math.sqrt(sum(squares.get(unit, 0.0) for unit in held)) for name, held in partition.items()}
        whole = math.sqrt(squares[ALL])
        parts = {}
        for component in dict.fromkeys(component for component, _ in measured):
            for segment, held in {ALL: [ALL], **partition}.items():
                found = [measured[component, unit] for unit in held if (component, unit) in measured]
                parts[component, segment] = _join(found, len(n_B), v_norms.get(segment, whole))
        return cls(parts, v_norms)


def _measured(batches: pd.DataFrame, n_B: pd.Series) -> dict[tuple[str, str], pd.DataFrame]:
    """Rows of the reverse pass by (component, unit), mini-batches in the order of `n_B`."""
    rows = batches[(batches["set"] == "train") & batches["grad_norm"].notna()]
    groups = rows.groupby(["component", "segment"], sort=False)
    return {
        (str(component), str(unit)): group.set_index("batch").reindex(n_B.index) for (component, unit), group in groups
    }


def _join(units: Sequence[pd.DataFrame], count: int, v_norm: float) -> Part:
    """The sum over units, by mini-batch."""

    def total(values: Iterable[pd.Series]) -> np.ndarray:
        return np.asarray(sum(values, np.zeros(count)))

    squares = total(unit["grad_norm"] ** 2 for unit in units)
    return Part(
        total(unit["dot"] for unit in units), np.sqrt(squares), total(unit["dot_adamw"] for unit in units), v_norm
    )


def _partition(content: Tables, options: Options) -> Mapping[str, Sequence[str]]:
    layers = content.metadata["layers"]
    partition = options.segments or thirds(layers)
    check(partition, layers)
    return partition


def keep_masks(reverse: Reverse, names: Sequence[str], options: Options) -> dict[str, np.ndarray]:
    """Mini-batches that are no outliers, per component: the same for all unless `per_component`."""
    masks = {}
    for name in names:
        own = name if options.per_component and (name, ALL) in reverse.parts else "TOT"
        norm = np.asarray(reverse.parts[own, ALL].norm)
        q1, q3 = np.quantile(norm, [0.25, 0.75])
        masks[name] = norm <= q3 + options.fence * (q3 - q1)
    return masks


def _row(
    dots_B: np.ndarray, part: Part | None, n_B: pd.Series, keep_B: np.ndarray, options: Options
) -> dict[str, float]:
    """G with its interval and tests; mean cosine and mean norm of mini-batches, nan where none was measured."""
    weights, dots = n_B.to_numpy(np.float64)[keep_B], dots_B[keep_B]
    row = {"G": _mean(dots, weights), **bootstrap(dots, weights, options.level, options.seed)}
    row |= {"share_positive": float((dots > 0).mean()), "sign_p": _sign_test(dots)}
    if part is None:
        return {**row, "cosine": math.nan, "grad_norm": math.nan, "G_adamw": math.nan}
    bound = part.norm[keep_B] * part.v_norm
    cosine = np.divide(dots, bound, out=np.zeros_like(bound), where=bound > 0)
    measured = {"cosine": cosine, "grad_norm": part.norm[keep_B], "G_adamw": part.adamw[keep_B]}
    return {**row, **{name: _mean(values, weights) for name, values in measured.items()}}


def _sign_test(dots: np.ndarray) -> float:
    """Two-sided binomial test of as many positive as negative mini-batches; zeros are left out."""
    signs = dots[dots != 0] > 0
    return float(binomtest(int(signs.sum()), len(signs)).pvalue) if len(signs) else 1.0


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float(values @ weights / weights.sum()) if weights.sum() > 0 else math.nan


def bootstrap(dots_B: np.ndarray, weights_B: np.ndarray, level: float, seed: int) -> dict[str, float]:
    """Percentile interval of Σ n·dot / Σ n over resampled mini-batches, and the two-sided p of the hypothesis G = 0.

    p is twice the smaller share of resampled G beyond 0, at least 2 / (draws + 1).
    """
    if not len(dots_B):
        return {"G_low": math.nan, "G_high": math.nan, "p_value": math.nan}
    draws = _draws(len(dots_B), seed)
    resampled = (draws @ (dots_B * weights_B)) / (draws @ weights_B)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    beyond = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return {"G_low": float(low), "G_high": float(high), "p_value": min(1.0, 2 * (beyond + 1) / (DRAWS + 1))}


@functools.lru_cache(maxsize=8)
def _draws(count: int, seed: int) -> np.ndarray:
    """How often each mini-batch is in each bootstrap sample; the same for all components, so that they pair."""
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return draws.astype(np.float64)


def _labels(component: str, segment: str, filtered: bool, keep_B: np.ndarray, difference: float) -> dict[str, Any]:
    counts = {"n_batches": int(keep_B.sum()), "n_outliers": int((~keep_B).sum())}
    labels = {"component": component, "segment": segment, "filtered": filtered}
    return {**labels, **counts, "reverse_forward_rel_diff": difference}


def _difference(content: Tables, keep_B: np.ndarray | None) -> float:
    """Forward against reverse total of the objective that was probed, relative as in `probe.gradients`."""
    rows = content.batches.query("set == 'train' and component == 'TOT' and segment == @ALL").sort_values("batch")
    rows = rows if keep_B is None else rows[np.asarray(keep_B)]
    n = rows["n"].to_numpy(np.float64)
    reverse, forward = _mean(rows["dot"].to_numpy(), n), _mean(rows["dot_forward"].to_numpy(), n)
    floor: float = 0.01 * content.metadata["v_norms"][ALL] * _mean(rows["grad_norm"].to_numpy(), n)
    return abs(reverse - forward) / max(abs(reverse), abs(forward), floor, math.ulp(0.0))


def _loss(content: Tables) -> float:
    """The objective's mean loss on D."""
    rows = content.batches.query("set == 'train' and component == 'TOT' and segment == @ALL")
    return _mean(rows["loss"].to_numpy(), rows["n"].to_numpy(np.float64))


def tabulate(probes: Sequence[Probe], options: Options = OPTIONS) -> pd.DataFrame:
    """`dynamics.parquet` of probed checkpoints; `loss_rose` as in `_loss_rose`, <NA> where that says nothing."""
    table = pd.concat([dynamics(probe, options) for probe in probes], ignore_index=True)
    before: dict[tuple[Any, ...], Probe] = {}  # the last checkpoint seen, by all keys but the step
    rose: dict[tuple[Any, ...], bool | None] = {}
    for probe in sorted(probes, key=lambda probe: int(probe.keys["step"])):
        of_run = tuple(probe.keys[key] for key in KEYS if key != "step")
        rose[tuple(probe.keys[key] for key in KEYS)] = _loss_rose(before.get(of_run), probe)
        before[of_run] = probe
    index = pd.MultiIndex.from_tuples(rose, names=KEYS)
    return table.join(pd.Series([*rose.values()], index, dtype="boolean", name="loss_rose"), on=KEYS)[COLUMNS]


def _loss_rose(earlier: Probe | None, later: Probe) -> bool | None:
    """Whether L(D) is above that of the checkpoint before; None where the two losses cannot be compared.

    Online, L at ratio 1 is the mean whitened advantage, 0 at every policy. Offline, D is the same, but a schedule that
    moves (λ of cDPO) makes two objectives of one.
    """
    about = later.tables.metadata
    if earlier is None or about["family"] == "online":
        return None
    objective = bind(about["objective"], about["parameters"], about["family"])
    then, now = (reweight(later.tables.scores, objective, probe.keys["step"]) for probe in (earlier, later))
    if not all(np.array_equal(*values) for values in zip(then, now, strict=True)):
        return None
    return _loss(later.tables) > _loss(earlier.tables)
