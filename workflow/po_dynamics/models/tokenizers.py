"""Tokenizers: a pad token of their own, a chat template whose answers end with EOS, ids of conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from po_dynamics.errors import InputError, first_line

Message = Mapping[str, str]


# Zephyr's format (Tunstall et al. 2023), without the line break after the last EOS: a response ends with EOS.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"
)


NEW_PAD = "<|padding|>"


SPARE_PADS = (r"<\|padding\|>", r".*\bpad.*", r".*_pad\b.*", r".*reserved_special_token_\d+.*", r".*unused\d+.*")


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
    rows = embedding_rows(model)
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


def embedding_rows(model: PreTrainedModel) -> int:
    """Token ids that the model knows."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index, operator, union-attr]


def _resize_embeddings(model: PreTrainedModel, size: int) -> None:
    """New rows are the mean of the old ones: an unseen token starts with an average logit, without any randomness."""
    old = embedding_rows(model)
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


def _tokenize_all(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return ids


class Conversation(NamedTuple):
    """Token ids of a prompt, up to where the assistant's answer begins, and of answers to it, EOS included."""

    prompt_ids: list[int]
    answers: list[list[int]]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation so far, up to where the assistant's answer begins."""
    return _tokenize(tokenizer, _render(tokenizer, messages, True))


def encode_response(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], message: Message) -> list[int]:
    """Token ids of the answer `message` to `prompt`, EOS included; see `encode_conversations`."""
    (found,) = encode_conversations(tokenizer, [(prompt, [message])])
    if isinstance(found, InputError):
        raise found
    return found.answers[0]


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[Sequence[Message], Sequence[Message]]]
) -> list[Conversation | InputError]:
    """Of every prompt and answers to it: their token ids, or why the chat template refuses them; one batch of texts.

    Prompt + answer is the template's full rendering. Where a token would span both, the answer is tokenised by itself,
    as a generating model sees it.
    """
    rendered = [_rendered(tokenizer, *row) for row in rows]
    texts = [found for found in rendered if not isinstance(found, InputError)]
    encoded = iter(_tokenize_all(tokenizer, [text for found in texts for text in found]))
    ids = [[next(encoded) for _ in found] for found in texts]
    # The answers of which the template's rendering shares a token with the prompt, by themselves.
    apart = [
        whole[len(start) :]
        for (start, *wholes), (prompt_ids, *answers) in zip(texts, ids, strict=True)
        for whole, answer in zip(wholes, answers, strict=True)
        if not _follows(prompt_ids, answer)
    ]
    alone = iter(_tokenize_all(tokenizer, apart))

    def conversation(prompt_ids: list[int], *answers: list[int]) -> Conversation:
        parts = (ids[len(prompt_ids) :] if _follows(prompt_ids, ids) else next(alone) for ids in answers)
        return Conversation(prompt_ids, [_to_eos(part, tokenizer.eos_token_id) for part in parts])

    found = (conversation(*of_row) for of_row in ids)
    return [error if isinstance(error, InputError) else next(found) for error in rendered]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answers: Sequence[Message]
) -> list[str] | InputError:
    """The prompt's text, and that of the conversation with each answer."""
    try:
        start = _render(tokenizer, prompt, True)
        wholes = [_render(tokenizer, [*prompt, answer], False) for answer in answers]
    except InputError as error:
        return error
    if not all(whole.startswith(start) for whole in wholes):
        return InputError(f"the chat template renders the prompt differently once it is answered: {start[-80:]!r}")
    return [start, *wholes]


def _follows(prompt_ids: list[int], ids: list[int]) -> bool:
    return ids[: len(prompt_ids)] == prompt_ids


def _to_eos(response: list[int], eos: Any) -> list[int]:
    """The response up to its last EOS, which it gets if it has none: some templates add a line break after EOS."""
    if eos not in response:
        return [*response, eos]
    return response[: len(response) - response[::-1].index(eos)]


def prepared_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model's folder as SFT prepares it; the weights are not read."""
    tokenizer = read_tokenizer(folder)
    with torch.device("meta"):
        prepare_tokenizer(tokenizer, AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)))
    return tokenizer
