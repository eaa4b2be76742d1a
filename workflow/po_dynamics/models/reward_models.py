"""Reward sources behind one callable: prompts and responses in, one score per response out."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from po_dynamics.errors import InputError
from po_dynamics.models.armorm import ARCHITECTURE, ArmoRM
from po_dynamics.models.batches import Batch, collate, longest_first
from po_dynamics.models.critic import Critic, final_values, read_normalisation
from po_dynamics.models.loading import check_folder, load_checked
from po_dynamics.models.tokenizers import read_tokenizer

Messages = Sequence[Mapping[str, str]]
Ids = Sequence[int]


class Scorer(Protocol):
    """Scores (B,), float32 on the CPU, normalised where a normalisation is stored; higher is better.

    Token ids, where given, are exactly what the policy read and wrote (with EOS, if it came); a scorer that shares the
    policy's tokenizer reads them, the others render the text with their own tokenizer and chat template.
    """

    def __call__(
        self,
        prompts: Sequence[Messages],
        responses: Sequence[str],
        prompt_ids: Sequence[Ids] | None = None,
        response_ids: Sequence[Ids] | None = None,
    ) -> Tensor: ...


def load(
    source: str | Path,
    policy_tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    place: Callable[[nn.Module], nn.Module] | None = None,
) -> Scorer:
    """A reward-model folder (ours, any sequence-classification model, ArmoRM) or "module:function".

    `policy_tokenizer` lets a reward model with the same tokenizer and chat template score token ids instead of text.
    Reward models run in bfloat16 on a GPU unless they are stored in float32, in float32 on a CPU. `place` puts the
    model where it runs, by default all of it on `device`.
    """
    folder = Path(source)
    if not folder.is_dir():
        if ":" in str(source):
            return FunctionScorer.load(str(source))
        raise InputError(f"reward {source}: no such folder, and not a 'module:function' either")
    check_folder(folder)
    tokenizer = chat_tokenizer(folder)
    shared = policy_tokenizer is not None and same_tokenizer(tokenizer, policy_tokenizer)
    config = json.loads((folder / "config.json").read_text())
    put = place or (lambda model: model.to(device))
    if ARCHITECTURE in config.get("architectures", []):
        model = put(load_checked(ArmoRM, folder, model_dtype(config, device)))
        mean, std = read_normalisation(folder)
        return ModelScorer(lambda batch: (model(batch) - mean) / std, tokenizer, shared, batch_size, device)
    critic = put(Critic.from_pretrained(folder, model_dtype(config, device)).eval())
    return ModelScorer(lambda batch: final_values(critic, batch), tokenizer, shared, batch_size, device)


class ModelScorer:
    """A model that scores the last token of a right-padded conversation, the last by length and not by id."""

    def __init__(
        self,
        score: Callable[[Batch], Tensor],
        tokenizer: PreTrainedTokenizerBase,
        shared_tokenizer: bool,
        batch_size: int,
        device: str | torch.device,
    ) -> None:
        self.score, self.tokenizer, self.shared_tokenizer = score, tokenizer, shared_tokenizer
        self.batch_size, self.device = batch_size, device

    def __call__(
        self,
        prompts: Sequence[Messages],
        responses: Sequence[str],
        prompt_ids: Sequence[Ids] | None = None,
        response_ids: Sequence[Ids] | None = None,
    ) -> Tensor:
        if self.shared_tokenizer and prompt_ids is not None and response_ids is not None:
            sequences = [[*p, *r] for p, r in zip(prompt_ids, response_ids, strict=True)]
        else:
            sequences = [self.render(p, r) for p, r in zip(prompts, responses, strict=True)]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        scores = torch.empty(len(sequences))
        with torch.no_grad():
            for rows in longest_first(list(map(len, sequences)), self.batch_size):
                batch = collate([sequences[r][:-1] for r in rows], [sequences[r][-1:] for r in rows], pad)
                scores[rows] = self.score(batch.to(self.device)).float().cpu()
        return scores

    def render(self, prompt: Messages, response: str) -> list[int]:
        """The conversation in the reward model's own words."""
        conversation = [*map(dict, prompt), {"role": "assistant", "content": response}]
        return list(self.tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False))


class FunctionScorer:
    """A Python function `f(prompts, responses) -> sequence of numbers`."""

    def __init__(self, function: Callable[[Sequence[Messages], Sequence[str]], Any], name: str) -> None:
        self.function, self.name = function, name

    @classmethod
    def load(cls, source: str) -> FunctionScorer:
        """From "module:function"; InputError where it cannot be imported."""
        module, _, name = source.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"reward {source}: {error}") from None
        if not callable(function):
            raise InputError(f"reward {source}: {name} is not a function")
        return cls(function, source)

    def __call__(
        self,
        prompts: Sequence[Messages],
        responses: Sequence[str],
        prompt_ids: Sequence[Ids] | None = None,
        response_ids: Sequence[Ids] | None = None,
    ) -> Tensor:
        scores = torch.as_tensor(self.function(prompts, responses), dtype=torch.float32).flatten().cpu()
        if len(scores) != len(responses):
            raise InputError(f"reward {self.name}: {len(scores)} scores for {len(responses)} responses")
        return scores


def chat_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a reward model; InputError where it is missing or has no chat template."""
    tokenizer = read_tokenizer(folder)
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: the tokenizer has no chat template: add one (chat_template.jinja)")
    return tokenizer


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Same ids for the same text and the same rendering of a conversation."""
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template


def model_dtype(config: Mapping[str, Any], device: str | torch.device) -> torch.dtype:
    """float32 on a CPU or where stored so, else bfloat16."""
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return torch.float32 if torch.device(device).type == "cpu" or stored == "float32" else torch.bfloat16
