"""Sampling responses: one protocol, three engines (a lean cached loop, Hugging Face `generate`, vLLM).

The first two sample by inverse transform from uniform numbers that belong to the row: a response depends on its prompt,
the policy and its own row of uniforms, never on the rows beside it, the padding, the number of processes or a
global random state. All sampling fields of the model's own generation config are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from po_dynamics.errors import InputError
from po_dynamics.models.batches import left_pad, longest_first
from po_dynamics.models.loading import context_length, evaluating
from po_dynamics.storage.distributed import all_in_step, in_step


class Sampling(NamedTuple):
    """The sampling law; `eos_ids` end a response and belong to it."""

    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0
    top_p: float = 1.0


class Response(NamedTuple):
    """One sampled response.

    `logps` are of the sampling law (after top-p), nats; `entropy` is of the full softmax at the temperature, summed
    over the tokens (None where the engine does not tell).
    """

    ids: list[int]
    ended: bool
    logps: list[float]
    entropy: float | None


# Of one position of every row: tokens (B,), then what else is kept of them, also (B,).
Column = tuple[Tensor, ...]


class Rollout(Protocol):
    """prompts (token ids) and uniforms (rows, max_new_tokens) in [0, 1) → one response per prompt, in order."""

    def __call__(self, prompts: Sequence[Sequence[int]], uniforms_BR: Tensor) -> list[Response]: ...


def row_uniforms(rows: int, sampling: Sampling, seed: Sequence[int]) -> Tensor:
    """Uniform numbers of every row of the global batch, from explicit seeds only (e.g. run seed and update)."""
    generator = torch.Generator().manual_seed(mix(*seed))
    return torch.rand(rows, sampling.max_new_tokens, generator=generator, dtype=torch.float64)


def mix(*seeds: int) -> int:
    """One seed from several, so that neighbouring seeds and updates do not share random numbers (SplitMix64)."""
    state = 0
    for seed in seeds:
        state = (state + seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


def draw(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their log-probs under the law, and the full softmax's entropies (B,), by inverse transform.

    top-p keeps the smallest set of most probable tokens whose mass reaches top_p (Holtzman et al. 2020).
    """
    logps_BV = (logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)) / temperature).log_softmax(-1)
    probs_BV = logps_BV.exp()
    entropies_B = -(probs_BV * logps_BV.clamp(min=torch.finfo(logps_BV.dtype).min)).sum(-1)
    if top_p < 1.0:
        probs_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        probs_BV = probs_BV.masked_fill(probs_BV.cumsum(-1) - probs_BV >= top_p, 0.0)
    mass_BV = probs_BV.double().cumsum(-1)
    targets_B = uniforms_B.to(mass_BV) * mass_BV[:, -1]
    index_B1 = torch.searchsorted(mass_BV, targets_B.unsqueeze(1), right=True).clamp(max=mass_BV.shape[1] - 1)
    law_B = (probs_BV.gather(1, index_B1).squeeze(1).double() / mass_BV[:, -1]).log()
    tokens_B1 = order_BV.gather(1, index_B1) if top_p < 1.0 else index_B1
    return tokens_B1.squeeze(1), law_B, entropies_B


def check(prompts: Sequence[Sequence[int]], sampling: Sampling, context: int | None) -> None:
    """InputError for empty prompts, and for prompts that leave no room for the response in the context."""
    check_lengths([len(prompt) for prompt in prompts], sampling, context)


def check_lengths(lengths: Sequence[int], sampling: Sampling, context: int | None) -> None:
    """As `check`, of the prompts' lengths in tokens."""
    if not lengths or min(lengths) == 0:
        raise InputError("roll-out: there is no prompt, or an empty one")
    if context is not None and max(lengths) + sampling.max_new_tokens > context:
        raise InputError(
            f"roll-out: a prompt of {max(lengths)} tokens and {sampling.max_new_tokens} new tokens exceed the model's "
            f"context of {context}: lower max_prompt_length or max_new_tokens"
        )


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    choose: Callable[[Tensor, int], Column],
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
) -> list[Column]:
    """The decoding loop with a key–value cache: what `choose` gave at each position, till every row has ended.

    `choose` maps the next token's logits (B, V) and the position in the response to tokens (B,) and whatever else it
    wants to keep of them. Prompts are padded on the left, and positions are given explicitly.
    """
    ids_BC, mask_BC = left_pad(prompts, pad_id, model.device)
    positions_BC = (mask_BC.cumsum(1) - 1).clamp(min=0)
    cache, eos = DynamicCache(config=model.config), torch.tensor(eos_ids, device=model.device)
    ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    columns: list[Column] = []
    for position in range(max_new_tokens):
        logits_BV = model(
            input_ids=ids_BC,
            attention_mask=mask_BC,
            position_ids=positions_BC,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        columns.append(choose(logits_BV, position))
        ended_B = ended_B | torch.isin(columns[-1][0], eos)
        if all_in_step(ended_B.all()):
            break
        ids_BC, positions_BC = columns[-1][0].unsqueeze(1), positions_BC[:, -1:] + 1
        mask_BC = torch.cat((mask_BC, mask_BC.new_ones(len(prompts), 1)), dim=1)
    return columns


def greedy(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, eos_id: int, pad_id: int
) -> list[list[int]]:
    """The most probable next token, again and again, to EOS (included) or `max_new_tokens`; one batch."""
    columns = decode(model, prompts, lambda logits_BV, _: (logits_BV.argmax(-1),), max_new_tokens, (eos_id,), pad_id)
    rows = torch.stack([tokens_B for (tokens_B,) in columns], 1).tolist()
    return [row[: row.index(eos_id) + 1] if eos_id in row else row for row in rows]


def _responses(columns: Sequence[Column], eos_ids: Sequence[int]) -> Iterator[Response]:
    """Cuts the sampled columns (tokens, log-probs of the law, entropies) of a batch at each row's first EOS."""
    rows = zip(*(torch.stack(part, 1).tolist() for part in zip(*columns, strict=True)), strict=True)
    for tokens, logps, entropies in rows:
        end = next((t for t, token in enumerate(tokens) if token in eos_ids), None)
        stop = len(tokens) if end is None else end + 1
        yield Response(tokens[:stop], end is not None, logps[:stop], float(sum(entropies[:stop])))


class CachedRollout:
    """Samples by the cached loop of `decode`."""

    def __init__(self, model: PreTrainedModel, sampling: Sampling, batch_size: int) -> None:
        self.model, self.sampling, self.batch_size = model, sampling, batch_size

    def __call__(self, prompts: Sequence[Sequence[int]], uniforms_BR: Tensor) -> list[Response]:
        check(prompts, self.sampling, context_length(self.model))
        responses: dict[int, Response] = {}
        with torch.no_grad(), evaluating(self.model):
            for rows in longest_first(list(map(len, prompts)), self.batch_size):
                columns = self._sample([prompts[row] for row in rows], uniforms_BR[rows].to(self.model.device))
                responses |= zip(rows, _responses(columns, self.sampling.eos_ids), strict=True)
        return [responses[row] for row in range(len(prompts))]

    def _sample(self, prompts: Sequence[Sequence[int]], uniforms_BR: Tensor) -> list[Column]:
        law = self.sampling

        def choose(logits_BV: Tensor, position: int) -> Column:
            return draw(logits_BV, uniforms_BR[:, position], law.temperature, law.top_p)

        return decode(self.model, prompts, choose, law.max_new_tokens, law.eos_ids, law.pad_id)


class GenerateRollout:
    """Hugging Face `generate` under a blank generation config; slower, for models whose cache the loop cannot drive."""

    def __init__(self, model: PreTrainedModel, sampling: Sampling, batch_size: int) -> None:
        self.model, self.sampling, self.batch_size = model, sampling, batch_size

    def __call__(self, prompts: Sequence[Sequence[int]], uniforms_BR: Tensor) -> list[Response]:
        check(prompts, self.sampling, context_length(self.model))
        responses: dict[int, Response] = {}
        with torch.no_grad(), evaluating(self.model), blank_generation_config(self.model):
            for rows in longest_first(list(map(len, prompts)), self.batch_size):
                ids_BC, mask_BC = left_pad([prompts[row] for row in rows], self.sampling.pad_id, self.model.device)
                forced = _Forced(uniforms_BR[rows], self.sampling)
                config = GenerationConfig(
                    do_sample=False,
                    max_new_tokens=self.sampling.max_new_tokens,
                    eos_token_id=list(self.sampling.eos_ids),
                    pad_token_id=self.sampling.pad_id,
                )
                self.model.generate(  # type: ignore[operator]
                    input_ids=ids_BC,
                    attention_mask=mask_BC,
                    generation_config=config,
                    logits_processor=LogitsProcessorList([forced]),
                    synced_gpus=in_step(),
                )
                responses |= zip(rows, _responses(forced.columns, self.sampling.eos_ids), strict=True)
        return [responses[row] for row in range(len(prompts))]


class _Forced(LogitsProcessor):
    """Draws each token from its row's uniform number and leaves `generate` no other choice."""

    def __init__(self, uniforms_BR: Tensor, sampling: Sampling) -> None:
        self.uniforms_BR, self.sampling = uniforms_BR, sampling
        self.columns: list[Column] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniforms_B = self.uniforms_BR[:, len(self.columns)].to(scores.device)
        self.columns.append(draw(scores, uniforms_B, self.sampling.temperature, self.sampling.top_p))
        forced = torch.full_like(scores, float("-inf"))
        return forced.scatter_(1, self.columns[-1][0].unsqueeze(1), 0.0)


def engine(name: str, model: PreTrainedModel, sampling: Sampling, batch_size: int) -> Rollout:
    """`cached` or `generate`."""
    return (CachedRollout if name == "cached" else GenerateRollout)(model, sampling, batch_size)


@contextmanager
def blank_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """`generate` fills unset fields from the model's own generation config; a blank one has nothing to give."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
