"""Greedy responses: the final responses D′, and those that the judge reads, with KL to the SFT model and reward."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from po_dynamics.data.tokens.table import Prompt, read_prompts
from po_dynamics.errors import InputError
from po_dynamics.evaluation.policies import divergence, draw_prompts, load_policy
from po_dynamics.models.batches import collate, longest_first
from po_dynamics.models.loading import context_length, default_device, evaluating
from po_dynamics.models.sampling import CachedRollout, Sampling, greedy, row_uniforms
from po_dynamics.settings.experiment import Responses
from po_dynamics.storage.parquet import write_frame

Ids = list[int]

BATCH_SIZE = 64
BATCH_TOKENS = 16_384  # of prompts and answers of a batch: what its cache may hold
REPETITION = 0.5  # share of repeated 4-grams above which a response has collapsed


# -------------------------------------------------------------------------------------------------- greedy decoding


def greedy_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    description: str = "responses",
) -> list[Ids]:
    """The most probable next token, again and again, to EOS (included) or `max_new_tokens`; in the prompts' order.

    Nothing of the model's own generation config takes part. A prompt that leaves less room in the context gets a
    shorter response; InputError when it leaves none.
    """
    context = context_length(model)
    if not prompts or min(map(len, prompts)) == 0:
        raise InputError("there is no prompt to answer, or an empty one")
    if context and max(map(len, prompts)) >= context:
        longest = max(map(len, prompts))
        raise InputError(f"a prompt has {longest} tokens and the model's context is {context}: shorten or drop it")
    eos, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    batch_size = fitting_rows(prompts, max_new_tokens, batch_size)
    responses: list[Ids] = [[] for _ in prompts]
    with torch.inference_mode(), evaluating(model), _bar(len(prompts), description) as bar:
        for rows in longest_first(list(map(len, prompts)), batch_size):
            batch = [prompts[row] for row in rows]
            room = min(max_new_tokens, context - len(batch[0])) if context else max_new_tokens
            for row, ids in zip(rows, greedy(model, batch, room, eos, pad), strict=True):
                responses[row] = ids
            bar.update(len(rows))
    return responses


def fitting_rows(prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> int:
    """Rows of a batch: `batch_size`, or as many of the longest as have BATCH_TOKENS together, at least one."""
    return max(1, min(batch_size, BATCH_TOKENS // (max(map(len, prompts)) + max_new_tokens)))


def _bar(total: int, description: str) -> Any:
    return tqdm(total=total, desc=description, unit="prompt", mininterval=5, file=sys.stderr)


# ------------------------------------------------------------------------------------------------------------- D′


def final_responses(
    checkpoint: Path, prompts: Path, output: Path, settings: Mapping[str, Any] | Responses, n: int, seed: int
) -> None:
    """D′: greedy responses of the final checkpoint to `n` prompts drawn with `seed` from a table of tokens.

    A prompt that several rows have (of preferences) is one prompt, under the id of its first row.
    Writes `id, prompt_ids, response_ids, response` (the ids with EOS if it came). Prompts that leave no room for
    `max_new_tokens` in the context are not drawn; they, empty responses (EOS at once) and unended ones are counted on
    standard error. The latter two stay: they are what the model says. InputError when all are empty.
    """
    new = Responses.of(settings, "evaluation").max_new_tokens
    tokenizer, model = load_policy(checkpoint, "float32")
    rows, too_long = draw_prompts(prompts, model, new, n, seed)
    ids = greedy_responses(model, tokenizer, [row.ids for row in rows], new, description="final responses")
    eos = tokenizer.eos_token_id
    empty, unended = sum(r == [eos] for r in ids), sum(r[-1] != eos for r in ids)
    _say(
        f"{len(rows)} of {n} prompts answered; {too_long} too long to draw from; {empty} responses "
        f"empty, {unended} cut at {new} tokens"
    )
    if empty == len(rows):
        raise InputError(f"{checkpoint}: every final response is empty (EOS at once): there is no D′ to probe with")
    table = pd.DataFrame({"id": [row.id for row in rows], "prompt_ids": [row.ids for row in rows]})
    table["response_ids"] = ids
    table["response"] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    write_frame(table, output)


# ------------------------------------------------------------------------------------------------------ evaluation


def evaluate_responses(
    checkpoints: Mapping[int, Path],
    sft: Path,
    reward: Path | str | None,
    prompts: Path,
    output: Path,
    settings: Mapping[str, Any] | Responses,
    seed: int = 0,
) -> None:
    """Greedy responses of every checkpoint to all prompts of a table of tokens, for the judge, in one table.

    Writes `step, id, instruction, response, n_tokens, ended, kl, reward, degenerate`. `n_tokens` counts EOS. `kl` (nats
    per response): one response is sampled per prompt (temperature 1, the same random numbers for every checkpoint), and
    the exact KL(π ‖ π_SFT) over the vocabulary is summed over its tokens: an unbiased estimate of the KL of responses
    with less variance than the log-ratio. `reward`: score of the greedy response (NaN without a reward model).
    `degenerate`: see `is_degenerate`. A base model's tokenizer is prepared as for SFT, in memory.

    Args:
        checkpoints: step → folder.
        reward: what `reward_models.load` takes.
        settings: of `evaluation` in the configuration, those that responses depend on.
        seed: of the sampled responses.
    """
    new = Responses.of(settings, "evaluation").max_new_tokens
    dtype = "bfloat16" if default_device().type == "cuda" else "float32"
    tables = []
    for step, folder in sorted(checkpoints.items()):
        tokenizer, policy = load_policy(folder, dtype)
        rows = read_prompts(prompts)
        prompt_ids = [row.ids for row in rows]
        ids = greedy_responses(policy, tokenizer, prompt_ids, new, description=f"step {step}: greedy")
        _, reference = load_policy(sft, dtype)
        kl = kl_to_reference(policy, reference, tokenizer, prompt_ids, new, seed)
        del policy, reference
        tables.append(_table(step, rows, ids, kl, tokenizer))
        tables[-1]["reward"] = _rewards(reward, rows, ids, list(tables[-1]["response"]), tokenizer)
        _say_summary(step, tables[-1])
    write_frame(pd.concat(tables, ignore_index=True), output)


def _table(
    step: int, rows: Sequence[Prompt], ids: Sequence[Ids], kl: Tensor, tokenizer: PreTrainedTokenizerBase
) -> pd.DataFrame:
    eos = int(tokenizer.eos_token_id)
    return pd.DataFrame(
        {
            "step": step,
            "id": [row.id for row in rows],
            "instruction": ["\n".join(m["content"] for m in row.messages if m["role"] == "user") for row in rows],
            "response": [text(tokenizer, response) for response in ids],
            "n_tokens": [len(response) for response in ids],
            "ended": [response[-1] == eos for response in ids],
            "kl": kl.tolist(),
            "reward": float("nan"),
            "degenerate": [is_degenerate(response, eos) for response in ids],
        }
    )


def text(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    """What the judge reads: all but the final EOS; a special token elsewhere stays visible."""
    content = ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids
    return str(tokenizer.decode(content, skip_special_tokens=False)).strip()


def is_degenerate(ids: Sequence[int], eos: int) -> bool:
    """Empty, or collapsed into repetition: over half of the 4-grams are repeats (seq-rep-4, Welleck et al. 2020)."""
    content = [token for token in ids if token != eos]
    grams = list(zip(*(content[i:] for i in range(4)), strict=False))
    return not content or (len(grams) > 0 and 1 - len(set(grams)) / len(grams) > REPETITION)


def kl_to_reference(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """KL(policy ‖ reference) of responses, (N,) nats: see `evaluate_responses`."""
    context = context_length(policy)
    new = min(max_new_tokens, context - max(map(len, prompts))) if context else max_new_tokens
    eos, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    sampling = Sampling(max_new_tokens=new, eos_ids=(eos,), pad_id=pad)
    uniforms_BR = row_uniforms(len(prompts), sampling, (seed, 1))
    batch_size = fitting_rows(prompts, new, batch_size)
    responses = [response.ids for response in CachedRollout(policy, sampling, batch_size)(prompts, uniforms_BR)]
    result = torch.empty(len(prompts), dtype=torch.float64)
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    with torch.inference_mode():
        for rows in longest_first(lengths, max(1, batch_size // 4)):
            batch = collate([prompts[r] for r in rows], [responses[r] for r in rows], pad).to(policy.device)
            result[rows] = divergence(policy, reference, batch).kl_B.cpu()
    return result


def _rewards(
    reward: Path | str | None,
    rows: Sequence[Prompt],
    ids: Sequence[Ids],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> list[float]:
    if reward is None:
        return [float("nan")] * len(rows)
    from po_dynamics.models import reward_models

    scorer = reward_models.load(reward, tokenizer, BATCH_SIZE, default_device())
    prompts, prompt_ids = [row.messages for row in rows], [row.ids for row in rows]
    return scorer(prompts, texts, prompt_ids, ids).tolist()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say_summary(step: int, table: pd.DataFrame) -> None:
    _say(
        f"step {step}: {len(table)} responses, {(~table['ended']).sum()} cut, {table['degenerate'].sum()} degenerate, "
        f"mean length {table['n_tokens'].mean():.1f} tokens, KL {table['kl'].mean():.3f} nats, reward "
        f"{table['reward'].mean():.3f}"
    )
