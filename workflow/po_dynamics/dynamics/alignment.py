"""Gradient alignment G of components and segments, with intervals, from probe tables; on a CPU, without a model.

    G = −Σ_t c_t s_t · N / N_kept over the mini-batches kept,   a component being a mask on the tokens

`tabulate` makes `dynamics.parquet` of an experiment; `reslice` and `python -m po_dynamics.dynamics` answer what another
β, schedule, grouping, outlier fence or partition of the layers would have given, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from po_dynamics.dynamics.coefficients import PAIR_ROLES, Terms, batch_sizes, component_masks, reweight
from po_dynamics.dynamics.intervals import Side, controlled, interval
from po_dynamics.dynamics.reverse import Part, Reverse, within_fence
from po_dynamics.dynamics.segments import ALL, check, thirds
from po_dynamics.dynamics.tables import DRIFTS, Tables
from po_dynamics.errors import InputError
from po_dynamics.objectives.registry import OBJECTIVES, bind

KEYS = ["model", "run", "seed", "step", "final_set"]
COLUMNS = [*KEYS, "component", "segment", "filtered", "G", "G_low", "G_high", "two_way", "resolved", "samples_needed"]
COLUMNS += [
    "n_train",
    "n_final",
    "cosine",
    "grad_norm",
    "n_batches",
    "n_outliers",
    "n_final_outliers",
    "reverse_forward_rel_diff",
    "p_value",
]
COLUMNS += [
    "share_positive",
    "sign_p",
    "G_adamw",
    "G_controlled",
    "G_controlled_low",
    "G_controlled_high",
    "loss",
    "loss_rose",
    "equal_weights",
    "u_norm",
    "v_norm",
]
AGREE = 0.02  # relative, of the two sides of G: looser than any probe's tolerance, tighter than other samples are


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

    @property
    def changed(self) -> bool:
        """Whether coefficients are others than the probed ones."""
        return self.objective is not None or bool(self.parameters)


OPTIONS = Options()


class Probe(NamedTuple):
    """One probed checkpoint and where it is from."""

    keys: dict[str, Any]  # model, run, seed, step, final_set
    tables: Tables


# ------------------------------------------------------------------------------------------------- one checkpoint: G


def dynamics(probe: Probe, options: Options = OPTIONS) -> pd.DataFrame:
    """Rows of `dynamics.parquet` of one checkpoint.

    Every component of the whole model comes from the token scores, its interval from both D and D′; segments of the
    components that the probe made separate come from the reverse pass, with an interval over D alone. With another
    objective or parameters than probed there are no norms, no cosines and no segments, intervals are over D alone
    (`two_way`), and the outliers stay those of the probed objective. `equal_weights` marks a checkpoint where all
    weights are the same, so that groups by weight mean nothing (step 0 of DPO: every ω is β/2). `grad_norm` is a mean
    of norms, of the gradients of mini-batches; `u_norm` and `v_norm` are norms of means, of the whole of D and D′.

    Raises:
        InputError: scores of D and drifts of D′ that belong to different samples.
    """
    content = probe.tables
    terms = terms_of(content, options)
    masks = component_masks(content.scores, terms.weight, options.groups)
    whole = Whole.of(content, terms.coefficient, masks, options)
    reverse = Reverse.of(content, whole.n_B, {} if options.changed else _partition(content, options))
    rows = []
    for filtered in (False, True):
        kept = Kept.of(content, reverse, whole, options) if filtered else Kept.everything(whole)
        difference = _difference(content, kept.train_B("TOT"))
        for name in masks:
            keep_B, part = kept.train_B(name), None if options.changed else reverse.parts.get((name, ALL))
            found = {ALL: whole.row(name, kept, options) | _norms(whole.dots[name], part, whole.n_B, keep_B)}
            for segment in reverse.v_norms:
                if (name, segment) in reverse.parts:
                    found[segment] = _segment_row(reverse.parts[name, segment], whole.n_B, keep_B, options)
            for segment, row in found.items():
                labels = {"component": name, "segment": segment, "filtered": filtered}
                rows.append({**labels, **row, **kept.counts(name), "reverse_forward_rel_diff": difference})
    v_norms = {**reverse.v_norms, ALL: content.metadata["v_norms"][ALL]}
    of_checkpoint = {"loss": _loss(content), "equal_weights": _equal(terms.weight)}
    of_checkpoint |= {"n_train": len(whole.train_batch), "n_final": content.drifts["sample_id"].nunique()}
    table = pd.DataFrame([{**probe.keys, **row, **of_checkpoint, "v_norm": v_norms[row["segment"]]} for row in rows])
    return table.reindex(columns=[column for column in COLUMNS if column != "loss_rose"])


def terms_of(content: Tables, options: Options) -> Terms:
    """Coefficients and weights: as stored, or of the objective and parameters of the options."""
    if not options.changed:
        stored = content.scores["coefficient"].to_numpy(), content.scores["weight"].to_numpy()
        return Terms(*stored, np.full(len(content.scores), math.nan))
    about = content.metadata
    name = options.objective or about["objective"]
    known = OBJECTIVES[name].parameters if name in OBJECTIVES else {}
    inherited = {key: value for key, value in about["parameters"].items() if key in known}
    objective = bind(name, inherited | dict(options.parameters or {}), about["family"])
    return reweight(content.scores, objective, about["step"])


def _equal(weight: np.ndarray) -> bool:
    """Whether all weights are the same but for rounding."""
    return bool(np.ptp(weight) <= 1e-9 * np.abs(weight).max())


def _partition(content: Tables, options: Options) -> Mapping[str, Sequence[str]]:
    layers = content.metadata["layers"]
    partition = options.segments or thirds(layers)
    check(partition, layers)
    return partition


# --------------------------------------------------------------------------------- G of the whole model, both sides


class Whole(NamedTuple):
    """G of every component of the whole model: by sample of D, by response of D′, by mini-batch of D."""

    train: dict[str, Side]  # of pairs, or of roll-outs in tokens
    final: dict[str, Side]  # of responses; only of components that have drifts
    adamw: dict[str, float]  # ⟨v, P⁻¹∇L⟩; of components that have it, nan without optimizer state
    control: np.ndarray | None  # Σ s_t by roll-out, whose expectation is 0 where the policy itself was sampled
    train_batch: np.ndarray  # the place in `n_B` of each sample's mini-batch
    final_batch: np.ndarray  # the id of each response's mini-batch
    n_B: pd.Series  # pairs or tokens by mini-batch
    dots: dict[str, np.ndarray]  # ⟨v, gradient of the mini-batch's own mean loss⟩

    @classmethod
    def of(cls, content: Tables, coefficient: np.ndarray, masks: Mapping[str, np.ndarray], options: Options) -> Whole:
        """Raises InputError where the two sides do not give the same G."""
        scores, n_B = content.scores, batch_sizes(content.scores)
        place = pd.Index(n_B.index).get_indexer(scores["batch"])
        sample, ids = pd.factorize(scores["sample_id"])
        pairs = set(scores["role"]) <= set(PAIR_ROLES)
        sizes = np.ones(len(ids)) if pairs else np.bincount(sample).astype(np.float64)
        batch = np.zeros(len(ids), dtype=np.int64)
        batch[sample] = place
        terms = -coefficient * n_B.sum()

        def sides(column: str) -> dict[str, Side]:
            values = terms * scores[column].to_numpy(np.float64)
            return {
                name: Side(np.bincount(sample[mask], values[mask], minlength=len(ids)), sizes)
                for name, mask in masks.items()
            }

        train = sides("score")
        dots = {
            name: np.bincount(batch, side.sums, minlength=len(n_B)) / n_B.to_numpy() for name, side in train.items()
        }
        adamw = {name: side.mean for name, side in sides("score_adamw").items()}
        final, final_batch = ({}, np.zeros(0)) if options.changed else _final_sides(content.drifts)
        final = {name: final[name] for name in masks if name in final}
        if final and math.isnan(adamw["TOT"]):
            adamw["TOT"] = content.drifts["drift_adamw"].sum(skipna=False) / len(final_batch)
        on_policy = not pairs and content.metadata["top_p"] in (None, 1)
        control = np.bincount(sample, scores["score"]) if on_policy else None
        whole = cls(train, final, adamw, control, batch, final_batch, n_B, dots)
        if whole.final:
            whole.require_equal_sides(content.metadata)
        return whole

    def require_equal_sides(self, about: Mapping[str, Any]) -> None:
        """InputError where the scores of D and the drifts of D′ are of different samples."""
        train, final = self.train["TOT"].mean, self.final["TOT"].mean
        floor = 0.01 * about["v_norms"][ALL] * about["u_norms"]["TOT"][ALL]
        if not abs(train - final) <= AGREE * max(abs(train), abs(final), floor):
            raise InputError(
                f"{about['objective']}, step {about['step']}: the scores of D give G = {train:.6g}, the drifts of D′ "
                f"{final:.6g}: they are of other samples; probe this checkpoint again"
            )

    def row(self, name: str, kept: Kept, options: Options) -> dict[str, Any]:
        """G of one component with its interval and tests."""
        keep_B, final = kept.train_B(name), self.final.get(name)
        keep = keep_B[self.train_batch]
        found = interval(self.train[name].kept(keep), final, kept.final, options.level, options.seed)
        dots = self.dots[name][keep_B]
        tests = {"share_positive": float((dots > 0).mean()), "sign_p": _sign_test(dots)}
        if keep.all() and kept.final.all():
            tests |= {"G_adamw": self.adamw[name], **self._controlled(name, options)}
        outliers = kept.final_outliers if final is not None else 0
        about = {"two_way": final is not None, "resolved": found.resolved, "n_final_outliers": outliers}
        return {**found._asdict(), **about, **tests}

    def _controlled(self, name: str, options: Options) -> dict[str, float]:
        """G with the control variate, where there is one."""
        if self.control is None:
            return {}
        side = controlled(self.train[name], self.control)
        found = interval(side, self.final.get(name), level=options.level, seed=options.seed)
        return {"G_controlled": found.G, "G_controlled_low": found.G_low, "G_controlled_high": found.G_high}


def _final_sides(drifts: pd.DataFrame) -> tuple[dict[str, Side], np.ndarray]:
    """The responses of D′, by component, and their mini-batches."""
    response, ids = pd.factorize(drifts["sample_id"])
    batch = np.zeros(len(ids), dtype=np.int64)
    batch[response] = drifts["batch"]
    sums = {
        name.removeprefix("drift_"): np.bincount(response, drifts[name].to_numpy(np.float64))
        for name in DRIFTS
        if name in drifts
    }
    sums["NEG"] = sums["TOT"] - sums["POS"]
    if "TOP" in sums:
        sums["BOT"] = sums["TOT"] - sums["TOP"] - sums["MID"]
    return {name: Side(values, np.ones(len(ids))) for name, values in sums.items()}, batch


class Kept(NamedTuple):
    """What is no outlier: mini-batches of D, by component, and responses of D′."""

    train: dict[str, np.ndarray]
    final: np.ndarray  # by response
    final_outliers: int  # mini-batches of D′

    @classmethod
    def everything(cls, whole: Whole) -> Kept:
        """Nothing is left out."""
        train = dict.fromkeys(whole.train, np.ones(len(whole.n_B), dtype=bool))
        return cls(train, np.ones(len(whole.final_batch), dtype=bool), 0)

    @classmethod
    def of(cls, content: Tables, reverse: Reverse, whole: Whole, options: Options) -> Kept:
        """By the norms of mini-batches: of TOT for all components unless `per_component`, and of the NLL of D′."""
        train = {}
        for name in whole.train:
            own = name if options.per_component and (name, ALL) in reverse.parts else "TOT"
            train[name] = within_fence(reverse.parts[own, ALL].norm, options.fence)
        final = content.batches.query("set == 'final'").set_index("batch")["grad_norm"]
        inside = pd.Series(within_fence(final.to_numpy(), options.fence), final.index)
        return cls(train, inside.reindex(whole.final_batch).to_numpy(bool), int((~inside).sum()))

    def train_B(self, name: str) -> np.ndarray:
        """Mini-batches of D that stay."""
        return self.train[name]

    def counts(self, name: str) -> dict[str, int]:
        """How many mini-batches of D stay and leave."""
        keep = self.train[name]
        return {"n_batches": int(keep.sum()), "n_outliers": int((~keep).sum())}


def _sign_test(dots: np.ndarray) -> float:
    """Two-sided binomial test of as many positive as negative mini-batches; zeros are left out."""
    signs = dots[dots != 0] > 0
    return float(binomtest(int(signs.sum()), len(signs)).pvalue) if len(signs) else 1.0


# -------------------------------------------------------------------------------------- norms and segments, D alone


def _norms(dots_B: np.ndarray, part: Part | None, n_B: pd.Series, keep_B: np.ndarray) -> dict[str, float]:
    """Mean cosine and mean norm of the mini-batches that were measured, and the norm of the whole gradient."""
    if part is None:
        return {"cosine": math.nan, "grad_norm": math.nan, "u_norm": math.nan}
    keep = keep_B & np.isfinite(part.norm)
    weights, bound = n_B.to_numpy(np.float64)[keep], part.norm[keep] * part.v_norm
    cosine = np.divide(dots_B[keep], bound, out=np.zeros_like(bound), where=bound > 0)
    means = {"cosine": _mean(cosine, weights), "grad_norm": _mean(part.norm[keep], weights)}
    return {**means, "u_norm": part.u_norm}


def _segment_row(part: Part, n_B: pd.Series, keep_B: np.ndarray, options: Options) -> dict[str, Any]:
    """G of a component in a segment, over the mini-batches of D that were measured; the interval is over D alone."""
    keep = keep_B & np.isfinite(part.dot)
    weights = n_B.to_numpy(np.float64)[keep]
    side = Side(part.dot[keep] * weights, weights)
    found = interval(side, level=options.level, seed=options.seed)._replace(samples_needed=math.nan)
    tests = {"share_positive": float((part.dot[keep] > 0).mean()), "sign_p": _sign_test(part.dot[keep])}
    about = {"two_way": False, "resolved": found.resolved, "n_final_outliers": 0}
    return {**found._asdict(), **about, **tests} | _norms(part.dot, part, n_B, keep)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float(values @ weights / weights.sum()) if weights.sum() > 0 else math.nan


def _difference(content: Tables, keep_B: np.ndarray) -> float:
    """Forward against reverse total of the objective that was probed, relative as in `probe.gradients`."""
    rows = content.batches.query("set == 'train' and component == 'TOT' and segment == @ALL").sort_values("batch")
    rows = rows[keep_B].dropna(subset="dot")
    n = rows["n"].to_numpy(np.float64)
    reverse, forward = _mean(rows["dot"].to_numpy(), n), _mean(rows["dot_forward"].to_numpy(), n)
    floor: float = 0.01 * content.metadata["v_norms"][ALL] * _mean(rows["grad_norm"].to_numpy(), n)
    return abs(reverse - forward) / max(abs(reverse), abs(forward), floor, math.ulp(0.0))


def _loss(content: Tables) -> float:
    """The objective's mean loss on D."""
    rows = content.batches.query("set == 'train' and component == 'TOT' and segment == @ALL")
    return _mean(rows["loss"].to_numpy(), rows["n"].to_numpy(np.float64))


# ------------------------------------------------------------------------------------------------ all checkpoints


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
