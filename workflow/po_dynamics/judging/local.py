"""Judges that are models in this process: a causal language model, read for its answer tokens, and a reward model."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from po_dynamics.errors import InputError, first_line
from po_dynamics.judging.prompts import messages_of
from po_dynamics.models import reward_models
from po_dynamics.models.batches import longest_first
from po_dynamics.models.hub import COMPANIONS, WEIGHTS
from po_dynamics.models.loading import check_folder, context_length, default_device, load_model
from po_dynamics.models.tokenizers import read_tokenizer
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.judging.directory import Judge

Columns = dict[str, list[Any]]
LABELS = ("m", "M")


def hf_completions(
    prompts: Sequence[str],
    model_name: str,
    labels: Sequence[str] = LABELS,
    dtype: str = "bfloat16",
    batch_size: int = 8,
) -> Columns:
    """Answer tokens of a causal language model, as a server's log-probs look: one forward pass a prompt.

    log p of each label is exact, from the softmax over the whole vocabulary, not over a server's first twenty. A prompt
    that is longer than the model's context has no answer.

    Args:
        prompts: ChatML or plain text.
        model_name: a local folder or a hub name.
        labels: what the model may answer, a token each.
        dtype: of the weights on a GPU; a CPU computes in float32.
        batch_size: prompts of a forward pass.
    """
    judge = _Causal.load(model_name, tuple(labels), dtype)
    logps: list[list[float] | None] = [None] * len(prompts)
    sequences = [judge.encode(prompt) for prompt in prompts]
    fitting = [i for i, ids in enumerate(sequences) if len(ids) < judge.context]
    if len(fitting) < len(prompts):
        longer = len(prompts) - len(fitting)
        print(f"judge: {longer} prompts are longer than {judge.context} tokens", file=sys.stderr, flush=True)
    for rows in longest_first([len(sequences[i]) for i in fitting], batch_size):
        found = judge.logps([sequences[fitting[row]] for row in rows])
        for row, values in zip(rows, found, strict=True):
            logps[fitting[row]] = values
    return {
        "completions": [None if p is None else labels[p.index(max(p))] for p in logps],
        "completions_all": [{} if p is None else _choice(labels, p) for p in logps],
    }


def reward_completions(
    prompts: Sequence[str], model_name: str, temperature: float = 1.0, batch_size: int = 8
) -> Columns:
    """Verdicts of a reward model: P(second ≻ first) = σ((r₂ − r₁) / temperature) (Bradley and Terry 1952).

    Args:
        prompts: JSON lists `[instruction, [response, ended], [response, ended]]`.
        model_name: a local folder, a hub name, or a "module:function" as `models.reward_models` knows it.
        temperature: in units of the reward; 0 gives hard verdicts.
        batch_size: responses of a forward pass.
    """
    score = _Rewards.load(model_name, batch_size)
    asked = [json.loads(prompt) for prompt in prompts]
    score.learn([(instruction, shown[0]) for instruction, *pair in asked for shown in pair])
    completions = []
    for instruction, (first, _), (second, _) in asked:
        rewards = score[instruction, first], score[instruction, second]
        preference = 1 + _sigmoid(rewards[1] - rewards[0], temperature)
        completions.append(json.dumps({"preference": preference, "rewards": rewards}))
    return {"completions": completions}


def check(judge: Judge, _calls: Calls, _prompt: str) -> tuple[dict[str, Any], None]:
    """Fetches the model of a judge of this module, and finds what can be found without loading its weights.

    Raises:
        InputError: no such model, a broken folder, a label of several tokens, a reward model without chat template.
    """
    name, rewards = str(judge.parameters["model_name"]), judge.function.endswith(f":{reward_completions.__name__}")
    if rewards and ":" in name:
        reward_models.FunctionScorer.load(name)
    elif rewards:
        reward_models.chat_tokenizer(fetch(name))
    else:
        label_ids(read_tokenizer(fetch(name)), judge.parameters.get("labels", LABELS))
    return {"model": name}, None


def fetch(name: str) -> Path:
    """The folder of a model: a local one, or the hub's, downloaded into the hub's cache where it is not there yet."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, allow_patterns=[*WEIGHTS, *COMPANIONS]))
        except (OSError, ValueError) as error:
            raise InputError(f"judge model {name}: no such folder, and not on the hub: {first_line(error)}") from None
    check_folder(folder)
    return folder


def label_ids(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[int]:
    """The token of each label after a prompt; InputError where one is several or unknown, or two are the same."""
    rendered = render(tokenizer, "?")
    found = [_label_id(tokenizer, rendered, label) for label in labels]
    known = [token for token in found if token is not None and token != tokenizer.unk_token_id]
    if len(set(known)) < len(labels):
        raise InputError(f"judge: the labels {', '.join(labels)} are not a token each for this tokenizer; take others")
    return known


def _label_id(tokenizer: PreTrainedTokenizerBase, rendered: str, label: str) -> int | None:
    """As it is tokenized where it follows; by itself, where the end of the prompt would be another with it."""
    prompt, whole = _ids(tokenizer, rendered), _ids(tokenizer, rendered + label)
    if whole[:-1] == prompt:
        return whole[-1]
    alone = list(tokenizer(label, add_special_tokens=False)["input_ids"])
    return alone[0] if len(alone) == 1 else None


def render(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The prompt as the model reads it, up to where its answer begins; plain text without a chat template."""
    messages = messages_of(prompt)
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in messages) + "\n"
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _ids(tokenizer: PreTrainedTokenizerBase, rendered: str) -> list[int]:
    """Token ids; a chat template writes its special tokens itself."""
    return list(tokenizer(rendered, add_special_tokens=not tokenizer.chat_template)["input_ids"])


def _choice(labels: Sequence[str], logps: Sequence[float]) -> dict[str, Any]:
    top = [{"token": label, "logprob": logp} for label, logp in zip(labels, logps, strict=True)]
    return {"logprobs": {"content": [{"top_logprobs": top}]}}


def _sigmoid(difference: float, temperature: float) -> float:
    if temperature == 0:
        return 0.5 + 0.5 * ((difference > 0) - (difference < 0))
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, difference / temperature))))


class _Causal:
    """A causal language model and the tokens that it may answer with."""

    def __init__(self, folder: Path, labels: tuple[str, ...], dtype: str) -> None:
        self.tokenizer = read_tokenizer(folder)
        self.labels = label_ids(self.tokenizer, labels)
        on_cpu = default_device().type == "cpu"
        self.model = load_model(folder, dtype="float32" if on_cpu else dtype)
        self.context = context_length(self.model) or sys.maxsize

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def load(name: str, labels: tuple[str, ...], dtype: str) -> _Causal:
        """Once for all chunks of a job."""
        return _Causal(fetch(name), labels, dtype)

    def encode(self, prompt: str) -> list[int]:
        return _ids(self.tokenizer, render(self.tokenizer, prompt))

    @torch.no_grad()
    def logps(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """log p of every label after every sequence, (B, labels), from left-padded rows."""
        width, device = max(map(len, sequences)), self.model.device
        input_ids_BC = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in sequences], device=device)
        mask_BC = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences], device=device)
        positions_BC = (mask_BC.cumsum(1) - 1).clamp(min=0)
        output = self.model(
            input_ids=input_ids_BC,
            attention_mask=mask_BC,
            position_ids=positions_BC,
            logits_to_keep=1,
            use_cache=False,
        )
        logps_BV = output.logits[:, -1].float().log_softmax(-1)
        return logps_BV[:, self.labels].tolist()


class _Rewards(dict[tuple[str, str], float]):
    """Rewards by instruction and response: the baseline's and the other order's are scored once."""

    def __init__(self, source: str | Path, batch_size: int) -> None:
        super().__init__()
        self.scorer = reward_models.load(source, None, batch_size, default_device())

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def load(name: str, batch_size: int) -> _Rewards:
        """Once for all chunks of a job; a reward model goes to the device that there is."""
        return _Rewards(name if ":" in name else fetch(name), batch_size)

    def learn(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Scores what is not known yet."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self]
        if new:
            prompts = [[{"role": "user", "content": instruction}] for instruction, _ in new]
            self.update(zip(new, self.scorer(prompts, [text for _, text in new]).tolist(), strict=True))
