"""Loading a checkpoint for the probe: everything that can be wrong with it is said before any long work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from po_dynamics.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
_SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")


def check_folders(checkpoints: list[Path], reference: Path) -> None:
    """InputError unless all folders hold readable weights of one architecture and one vocabulary."""
    expected, words = _shape(reference), _vocabulary(reference)
    for folder in [reference, *checkpoints]:
        _check_weights(folder)
        shape = _shape(folder)
        for key, value in expected.items():
            if shape[key] != value:
                raise InputError(
                    f"{folder}: {key} is {shape[key]!r}, but {value!r} in {reference}: "
                    "the checkpoint is of another model than the samples"
                )
        if _vocabulary(folder) != words:
            raise InputError(f"{folder}: its tokenizer differs from that of {reference}, which makes the samples")


def _shape(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    return {key: config.get(key) for key in _SHAPE}


def _vocabulary(folder: Path) -> Any:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None  # a slow tokenizer: token ids are still checked against the vocabulary's size
    content = json.loads(path.read_text(encoding="utf-8"))
    return content.get("model", {}).get("vocab"), content.get("added_tokens")


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("model*.safetensors"))
    if not files and not list(folder.glob("pytorch_model*.bin")):
        raise InputError(f"{folder} has no weights (model.safetensors); train this checkpoint again")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise InputError(f"{file} is truncated or broken ({error}); train this checkpoint again") from None


def load_policy(folder: Path, precision: str = "fp32", device: str | torch.device | None = None) -> PreTrainedModel:
    """The model of a folder with eager attention, in evaluation mode.

    Raises:
        InputError: missing, broken, incomplete or non-finite weights; a model without eager attention.
    """
    from transformers import AutoModelForCausalLM

    _check_weights(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=DTYPES[precision], output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder} cannot be loaded with eager attention, which the probe needs: {reason}") from None
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])[0]
        raise InputError(f"{folder}: weights are missing, e.g. {missing}; save the model again")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InputError(f"{folder}: {name} has values that are not finite: the run diverged before it")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval().to(device)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from None


def read_optimizer(folder: Path, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, float | None]:
    """AdamW's P = √v̂ + ε by parameter (v̂ bias-corrected), and the learning rate; None without optimizer state."""
    from safetensors.torch import load_file

    state, moments = folder / "optimizer.json", folder / "exp_avg_sq.safetensors"
    if not state.is_file() or not moments.is_file():
        return None, None
    content = json.loads(state.read_text(encoding="utf-8"))
    try:
        squares = load_file(moments)
    except Exception as error:  # safetensors raises its own kinds
        raise InputError(f"{moments} is truncated or broken ({error}); train this checkpoint again") from None
    correction = 1 - content["betas"][1] ** content["step"]
    scales = {}
    for name, parameter in model.named_parameters():
        if name not in squares or squares[name].shape != parameter.shape:
            raise InputError(f"{moments} has no second moments of {name} in its shape; it is of another model")
        scales[name] = (squares[name].to(parameter) / correction).sqrt() + content["eps"]
    return scales, content.get("learning_rate")


def vocabulary_size(model: PreTrainedModel) -> int:
    """Token ids that the model knows."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def context_length(model: PreTrainedModel) -> int | None:
    """Positions that the model knows, None where its configuration does not say."""
    return getattr(model.config, "max_position_embeddings", None)
