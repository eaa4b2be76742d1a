"""Loading causal language models: every fault of a folder is found before any long work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from po_dynamics.errors import InputError, first_line
from po_dynamics.models.tokenizers import _embeddings, read_tokenizer

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


# -------------------------------------------------------------------------------------------------------- models


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    path: Path, *, attention: str = "sdpa", dtype: str = "float32", device: torch.device | str | None = None
) -> PreTrainedModel:
    """A causal language model, dropout off, in evaluation mode, on `device` (default: `default_device()`).

    `attention` is "sdpa" or "eager" (forward-mode differentiation needs the latter). InputError for a folder without
    configuration, weights or some of the weights, for a truncated file, for weights that are not finite, and for fewer
    embeddings than tokens.
    """
    return _load(AutoModelForCausalLM, Path(path), attention, dtype, device)


def load_classifier(
    path: Path, *, attention: str = "sdpa", dtype: str = "float32", device: torch.device | str | None = None
) -> PreTrainedModel:
    """A one-label sequence classifier (reward model), else as `load_model`; InputError when its pad token is EOS.

    With pad = EOS, `*ForSequenceClassification` pools the token before EOS.
    """
    model = _load(AutoModelForSequenceClassification, Path(path), attention, dtype, device, num_labels=1)
    config = model.config.get_text_config()
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.pad_token_id is None or config.pad_token_id in eos:
        raise InputError(
            f"{path}: pad_token_id is {config.pad_token_id} and EOS {eos}: it would not score the last token"
        )
    return model


def _load(
    auto: Any, path: Path, attention: str, dtype: str, device: torch.device | str | None, **options: Any
) -> PreTrainedModel:
    check_folder(path)
    try:
        config = AutoConfig.from_pretrained(path, **options)
        turn_off_dropout(config)
        model, report = auto.from_pretrained(
            path, config=config, dtype=getattr(torch, dtype), attn_implementation=attention, output_loading_info=True
        )
    except Exception as error:  # safetensors, torch, json and transformers each have their own
        raise InputError(f"{path}: cannot load the model: {first_line(error)}; make the folder again") from None
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{path}: {len(missing)} weights are missing, such as {missing[0]}; make the folder again")
    _check_weights(model, path)
    return model.to(device if device is not None else default_device()).eval()


def check_folder(path: Path) -> None:
    """InputError unless `path` is a folder with a configuration and weights."""
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: expected a Hugging Face model")
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: config.json is missing; expected a Hugging Face model")
    if not any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        raise InputError(f"{path}: the folder has no weights (model.safetensors); make the folder again")


def turn_off_dropout(config: PreTrainedConfig) -> None:
    """Zeroes every dropout rate of a configuration, before the model is built from it."""
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            if re.search("dropout|pdrop", name) and isinstance(value, float):
                setattr(part, name, 0.0)


def _check_weights(model: PreTrainedModel, path: Path) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InputError(f"{path}: the weight {name} is not finite; go back to an earlier checkpoint")
    if (path / "tokenizer_config.json").is_file():
        tokens, rows = max(read_tokenizer(path).get_vocab().values()) + 1, _embeddings(model)
        if tokens > rows:
            raise InputError(f"{path}: the tokenizer has {tokens} tokens and the model {rows} embeddings: not a pair")


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode (gradient checkpointing forbids the cache in training mode), restored afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
