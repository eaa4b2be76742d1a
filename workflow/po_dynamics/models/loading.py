"""Loading models with checks: every fault of a folder is found before any long work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from po_dynamics.errors import InputError, first_line
from po_dynamics.models.tokenizers import embedding_rows, read_tokenizer

NORMALISATION = "normalisation.json"  # beside a reward model's weights: mean and std of its scores on SFT samples
RAW = {"mean": 0.0, "std": 1.0, "n": 0}  # where scores are left as they are
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    path: Path, *, attention: str = "sdpa", dtype: str = "float32", device: torch.device | str | None = None
) -> PreTrainedModel:
    """A causal language model, dropout off, in evaluation mode, on `device` (default: `default_device()`).

    `attention` is "sdpa" or "eager" (forward-mode differentiation needs the latter). InputError as `load_checked`.
    """
    model: Any = load_checked(AutoModelForCausalLM, Path(path), getattr(torch, dtype), attn_implementation=attention)
    return model.to(device if device is not None else default_device())


def load_checked(
    auto: Any, path: Path, dtype: torch.dtype, labels: int | None = None, **options: Any
) -> PreTrainedModel:
    """What `auto.from_pretrained` makes of a folder, dropout off, in evaluation mode, on the CPU.

    `labels` is the number of labels of a classifier. InputError for a folder without configuration, weights or some of
    the weights, for a truncated file, for weights that are not finite, and for fewer embeddings than tokens.
    """
    check_folder(path)
    try:
        config = AutoConfig.from_pretrained(path, **({} if labels is None else {"num_labels": labels}))
        turn_off_dropout(config)
        model, report = auto.from_pretrained(path, config=config, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # safetensors, torch, json and transformers each have their own
        how = "".join(f" with {name} = {value}" for name, value in options.items())
        raise InputError(f"{path}: cannot load the model{how}: {first_line(error)}; make the folder again") from None
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{path}: {len(missing)} weights are missing, such as {missing[0]}: this is not a complete "
            f"{type(model).__name__}; make the folder again"
        )
    _check_weights(model, path)
    return model.eval()


def check_folder(path: Path) -> None:
    """InputError unless `path` is a folder with a configuration and readable weights; the weights are not loaded."""
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: expected a Hugging Face model")
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: config.json is missing; expected a Hugging Face model")
    files = sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
    if not files:
        raise InputError(f"{path}: the folder has no weights (model.safetensors); make the folder again")
    for file in files:
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise InputError(f"{file}: cannot load the model: truncated or broken ({error}); make it again") from None


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
        tokens, rows = max(read_tokenizer(path).get_vocab().values()) + 1, embedding_rows(model)
        if tokens > rows:
            raise InputError(f"{path}: the tokenizer has {tokens} tokens and the model {rows} embeddings: not a pair")


def context_length(model: PreTrainedModel | PreTrainedConfig) -> int | None:
    """Tokens that a model, or the model of a configuration, can read; None where the configuration does not say."""
    config = model if isinstance(model, PreTrainedConfig) else model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def usable_length(model: PreTrainedModel | PreTrainedConfig, max_length: int | None) -> int:
    """`max_length` tokens, by default all of the context (1024 where that is unknown); InputError when above it."""
    context = context_length(model)
    length = max_length or context or 1024
    if context is not None and length > context:
        raise InputError(f"max_length = {length} is above the model's context of {context} tokens: lower it")
    return int(length)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode: no dropout, and a cache, which gradient checkpointing forbids in training mode.

    The earlier mode is restored.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
