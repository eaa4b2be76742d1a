"""Models, tokenizers, token sequences and log-probabilities: the one code path that trains, rolls out and probes.

Shapes: B sequences, L tokens (right padded), T = L - 1 predictions; prediction t is of token t + 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from po_dynamics.errors import InputError

Message = Mapping[str, str]

# Zephyr's format (Tunstall et al. 2023), without the line break after the last EOS: a response ends with EOS.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"
)
NEW_PAD = "<|padding|>"
SPARE_PADS = (r"<\|padding\|>", r".*\bpad.*", r".*_pad\b.*", r".*reserved_special_token_\d+.*", r".*unused\d+.*")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


class Batch(NamedTuple):
    """Right-padded sequences; `loss_mask_BT` is True where the predicted token is of the response."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    loss_mask_BT: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


def collate(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Right-pads prompt + response. Masks come from the lengths, never from `ids != pad_id`."""
    length = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.full((len(prompts), length), pad_id)
    attention = torch.zeros(len(prompts), length, dtype=torch.long)
    loss_mask = torch.zeros(len(prompts), length - 1, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor([*prompt, *response])
        attention[row, :end] = 1
        loss_mask[row, len(prompt) - 1 : end - 1] = True
    return Batch(ids, attention, loss_mask)


def token_logps(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log π(token t + 1 | tokens ≤ t), (B, T) in at least float32; 0 outside `loss_mask_BT`."""
    logits = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL, use_cache=False).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    targets = batch.input_ids_BL[:, 1:].unsqueeze(-1)
    logps = logits.gather(-1, targets).squeeze(-1) - logits.logsumexp(-1)
    return logps.masked_fill(~batch.loss_mask_BT, 0.0)


# ---------------------------------------------------------------------------------------------------- tokenizers


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; InputError unless it has an EOS, a pad token of its own and a chat template."""
    tokenizer = read_tokenizer(path)
    way_out = "use a folder of the SFT stage, which prepares it"
    if tokenizer.eos_token_id is None:
        raise InputError(f"{path}: the tokenizer has no EOS token; {way_out}")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise InputError(f"{path}: the pad token is {tokenizer.pad_token!r}, not one of its own beside EOS; {way_out}")
    if not tokenizer.chat_template:
        raise InputError(f"{path}: the tokenizer has no chat template; {way_out}")
    return tokenizer


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder as it is; InputError where there is none."""
    if not Path(path).is_dir():
        raise InputError(f"{path} is not a folder: expected a Hugging Face model with its tokenizer")
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no usable tokenizer ({first_line(error)}); copy the model's tokenizer files"
        ) from None


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Gives tokenizer and model, in place, one dedicated pad token and a chat template whose responses end with EOS.

    A spare special token of the vocabulary becomes the pad token, else a new one (embeddings are resized where it does
    not fit). A tokenizer without a chat template, or with one whose rendered prompt is no prefix of the rendered
    conversation or whose answers do not end with EOS, gets Zephyr's. InputError when there is no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the base model's tokenizer has no EOS token: set eos_token in its tokenizer_config.json")
    rows = _embeddings(model)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": _spare_pad(tokenizer, rows) or NEW_PAD})
    if len(tokenizer) > rows:
        _resize_embeddings(model, len(tokenizer))
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if not _template_fits(tokenizer):
        starts_with_bos = (
            tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        )
        tokenizer.chat_template = ("{{ bos_token }}" if starts_with_bos else "") + CHAT_TEMPLATE
        if not _template_fits(tokenizer):
            raise InputError("the tokenizer alters special tokens: its rendered conversations do not end with EOS")
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        if config is not None:
            config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
            config.bos_token_id = tokenizer.bos_token_id


def _spare_pad(tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """A special token of the vocabulary that nothing else uses."""
    used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    free = sorted((i, token) for token, i in special.items() if token not in used and i < rows)
    for pattern in SPARE_PADS:
        for _, token in free:
            if re.fullmatch(pattern, token, re.IGNORECASE):
                return token
    return None


def _embeddings(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index, operator, union-attr]


def _resize_embeddings(model: PreTrainedModel, size: int) -> None:
    """New rows are the mean of the old ones: an unseen token starts with an average logit, without any randomness."""
    old = _embeddings(model)
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        embeddings: Any
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            if embeddings is not None:
                embeddings.weight[old:] = embeddings.weight[:old].mean(0)


def _template_fits(tokenizer: PreTrainedTokenizerBase) -> bool:
    if not tokenizer.chat_template:
        return False
    prompt = [{"role": "user", "content": "One."}]
    answer = [{"role": "assistant", "content": "Two."}]
    try:
        texts = _render(tokenizer, prompt, True), _render(tokenizer, [*prompt, *answer], False)
    except InputError:
        return False
    ids = _tokenize(tokenizer, texts[1][len(texts[0]) :])
    return texts[1].startswith(texts[0]) and ids[-1:] == [tokenizer.eos_token_id] and len(ids) > 1


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: bool) -> str:
    try:
        conversation = [dict(message) for message in messages]
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"the chat template refuses the messages {messages!r:.200}: {first_line(error)}") from None
    return str(text)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation so far, up to where the assistant's answer begins."""
    return _tokenize(tokenizer, _render(tokenizer, messages, True))


def encode_response(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], message: Message) -> list[int]:
    """Token ids of the answer `message` to `prompt`, EOS included: prompt + response is the template's full rendering.

    Where a token would span prompt and response, the response is tokenised by itself, as a generating model sees it.
    """
    start, whole = _render(tokenizer, prompt, True), _render(tokenizer, [*prompt, message], False)
    if not whole.startswith(start):
        raise InputError(f"the chat template renders the prompt differently once it is answered: {start[-80:]!r}")
    prompt_ids, ids = _tokenize(tokenizer, start), _tokenize(tokenizer, whole)
    if ids[: len(prompt_ids)] == prompt_ids:
        response = ids[len(prompt_ids) :]
    else:
        response = _tokenize(tokenizer, whole[len(start) :])
    eos = tokenizer.eos_token_id
    if eos not in response:
        return [*response, eos]
    return response[: len(response) - response[::-1].index(eos)]  # some templates add a line break after EOS


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


def first_line(error: Exception) -> str:
    """The first line of an error's message, for errors of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
