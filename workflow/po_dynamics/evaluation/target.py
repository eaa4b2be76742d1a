"""Sampled responses of policies, with all that their distance to π^τ(y|x) = π_ref(y|x) exp(r(x, y)/τ)/Z(x) needs.

KL(π ‖ π^τ) = KL(π ‖ π_ref) − E_π[r]/τ + log Z(x), and Z(x) = E_q[π_ref/q · exp(r/τ)] for any law q that leaves nothing
out. Samples of π_ref alone miss the responses of high reward that Z at small τ is made of, so q is the mixture of the
*proposals*, π_ref and policies trained towards the target: the balance heuristic (Veach and Guibas 1995), whose
weights π_ref as a component keeps below K exp(r/τ) (Owen and Zhou 2000). What is stored here serves any τ.

A response is what a policy says up to EOS or a limit of tokens, so log-probs are of a law over finitely many responses.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from po_dynamics.data.tokens.table import Prompt
from po_dynamics.errors import InputError
from po_dynamics.evaluation.policies import Divergence, divergence, draw_prompts, load_policy
from po_dynamics.models import reward_models
from po_dynamics.models.batches import Batch, collate, longest_first, token_logps, unmasked
from po_dynamics.models.loading import default_device
from po_dynamics.models.sampling import CachedRollout, Sampling, row_uniforms
from po_dynamics.settings.experiment import TargetSamples
from po_dynamics.storage.parquet import write_frame

SAMPLED_TOGETHER = 256  # rows of a decoding batch
SCORED_TOGETHER = 64  # rows of a forward pass


class Policy(NamedTuple):
    """A policy that is sampled; `proposal`: whether its samples also estimate Z."""

    run: str
    seed: int
    step: int
    proposal: bool


REFERENCE = Policy("sft", 0, 0, True)  # no run may be called so


class Task(NamedTuple):
    """What all policies answer, and what judges their answers."""

    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Mapping[str, Prompt]  # by id
    scorer: reward_models.Scorer
    settings: TargetSamples
    seed: int

    @property
    def pad(self) -> int:
        return int(self.tokenizer.pad_token_id)


def sample_policies(
    policies: Mapping[Policy, Path],
    reference: Path,
    reward: Path | str,
    prompts: Path,
    output: Path,
    settings: Mapping[str, Any] | TargetSamples,
    seed: int,
) -> None:
    """Samples the reference and every policy at temperature 1, each with random numbers of its own.

    Writes `run, seed, step, proposal, id, response_ids, ended, reward, logp, ref_logp, kl, mixture_logp`: the reference
    under `REFERENCE`'s keys; `kl` as in `policies.Divergence`; `mixture_logp`, of proposals' samples, is the
    log-density of the equal mixture of all proposals (NaN for the others). Everything is computed in float32.

    Args:
        policies: each with its model folder; the reference is not among them.
        reward: what `reward_models.load` takes.
        prompts: table of tokens, from which `settings.prompts` are drawn.

    Raises:
        InputError: an unusable folder, no prompt that fits, a reward that is not finite.
    """
    settings = TargetSamples.of(settings, "target")
    tokenizer, model = load_policy(reference, "float32")
    rows, _ = draw_prompts(prompts, model, settings.max_new_tokens, settings.prompts, seed)
    if len(rows) < 2:
        raise InputError(f"{prompts}: one prompt leaves room for {settings.max_new_tokens} tokens; intervals need two")
    scorer = reward_models.load(reward, tokenizer, SCORED_TOGETHER, default_device())
    task = Task(model, tokenizer, {row.id: row for row in rows}, scorer, settings, seed)
    folders = {REFERENCE: reference, **policies}
    with torch.inference_mode():
        found = [
            _sampled(policy, folder, task) for policy, folder in tqdm(folders.items(), "policies", file=sys.stderr)
        ]
        table = pd.concat(found, ignore_index=True)
        table.loc[table["proposal"], "mixture_logp"] = _mixture(table[table["proposal"]], folders, task)
    if bad := int((~table["reward"].map(math.isfinite)).sum()):
        raise InputError(f"{reward}: {bad} of {len(table)} sampled responses have a reward that is not finite")
    write_frame(table, output)


def _sampled(policy: Policy, folder: Path, task: Task) -> pd.DataFrame:
    """Responses of one policy to every prompt, with rewards, log-probs and KL; a row each."""
    model = task.reference if policy == REFERENCE else load_policy(folder, "float32")[1]
    each = task.settings.proposal_samples if policy.proposal else task.settings.samples
    ids = [key for key in task.prompts for _ in range(each)]
    sampling = Sampling(task.settings.max_new_tokens, (int(task.tokenizer.eos_token_id),), task.pad)
    uniforms_BR = row_uniforms(len(ids), sampling, (task.seed, *policy.run.encode(), policy.seed, policy.step))
    prompt_ids = [task.prompts[key].ids for key in ids]
    responses = CachedRollout(model, sampling, SAMPLED_TOGETHER)(prompt_ids, uniforms_BR)
    table = pd.DataFrame({**policy._asdict(), "id": ids, "response_ids": [response.ids for response in responses]})
    table["ended"] = [response.ended for response in responses]
    table["reward"] = _rewards(table, task)
    kl_N, logps_N, ref_logps_N = (part_N.numpy() for part_N in _divergence(model, table, task))
    return table.assign(logp=logps_N, ref_logp=ref_logps_N, kl=kl_N, mixture_logp=math.nan)


def _rewards(table: pd.DataFrame, task: Task) -> list[float]:
    rows, responses = [task.prompts[key] for key in table["id"]], list(table["response_ids"])
    texts = task.tokenizer.batch_decode(responses, skip_special_tokens=True)
    prompts, prompt_ids = [row.messages for row in rows], [row.ids for row in rows]
    return task.scorer(prompts, texts, prompt_ids, responses).double().tolist()


def _divergence(model: PreTrainedModel, table: pd.DataFrame, task: Task) -> Divergence:
    """Of every row of the table, in its order."""
    found = Divergence(*(torch.empty(len(table), dtype=torch.float64) for _ in Divergence._fields))
    for rows, batch in _batches(table, task):
        for whole_N, part_B in zip(found, divergence(model, task.reference, batch), strict=True):
            whole_N[rows] = part_B.cpu()
    return found


def _batches(table: pd.DataFrame, task: Task) -> Iterator[tuple[list[int], Batch]]:
    """The responses of a table with their prompts, and the rows that each batch is of."""
    prompts, responses = [task.prompts[key].ids for key in table["id"]], list(table["response_ids"])
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    for rows in longest_first(lengths, SCORED_TOGETHER):
        batch = collate([prompts[r] for r in rows], [responses[r] for r in rows], task.pad)
        yield rows, unmasked(batch).to(task.reference.device)


def _mixture(table: pd.DataFrame, folders: Mapping[Policy, Path], task: Task) -> Any:
    """log of the proposals' mean density of every row, (N,); of its own policy and of the reference it is known."""
    proposals = [policy for policy in folders if policy.proposal]
    logps_KN = torch.empty(len(proposals), len(table), dtype=torch.float64)
    for row, policy in enumerate(proposals):
        own = (table[["run", "seed", "step"]] == [policy.run, policy.seed, policy.step]).all(axis=1).to_numpy()
        known = table["ref_logp"] if policy == REFERENCE else table["logp"]
        logps_KN[row] = torch.from_numpy(known.to_numpy(copy=True))
        if policy != REFERENCE:
            logps_KN[row, ~own] = _logps(load_policy(folders[policy], "float32")[1], table[~own], task)
    return (logps_KN.logsumexp(0) - math.log(len(proposals))).numpy()


def _logps(model: PreTrainedModel, table: pd.DataFrame, task: Task) -> Tensor:
    """log π of every response of the table, (N,) in float64, nats."""
    logps_N = torch.empty(len(table), dtype=torch.float64)
    for rows, batch in _batches(table, task):
        logps_N[rows] = token_logps(model, batch).double().sum(1).cpu()
    return logps_N
