"""Loading with checks, hostile tokenizers, rendering of conversations."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import toy
from po_dynamics.errors import InputError
from po_dynamics.models import hub
from po_dynamics.models.batches import collate, token_logps
from po_dynamics.models.critic import Critic
from po_dynamics.models.loading import check_folder, context_length, load_model, usable_length
from po_dynamics.models.tokenizers import encode_prompt, encode_response, load_tokenizer, prepare_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

PROMPT = toy.user("what is the fox ?")
ANSWER = toy.assistant("the fox is red .")[0]
LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<eos>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def byte_tokenizer(**names: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Pythia's, Qwen's and Llama's."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", *names.pop("special", "").split()]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the fox is red .\n\n the owl is blue .\n\n"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"eos_token": "<|endoftext|>"} | names))


# ------------------------------------------------------------------------------------------------------ tokenizers


HOSTILE = {
    "no pad": lambda: toy.tiny_tokenizer(pad=None),
    "pad is eos": lambda: toy.tiny_tokenizer(pad="<eos>"),
    "no template": lambda: toy.tiny_tokenizer(pad=None, template=None),
    "broken template": lambda: toy.tiny_tokenizer(template="{{ messages[9]['content'] }}"),
    "template without eos": lambda: toy.tiny_tokenizer(template="{{ messages[0]['content'] }}"),
    "template ends after eos": lambda: byte_tokenizer(chat_template=LLAMA_LIKE.replace("<eos>", "<|endoftext|>")),
    "bytes, pad is eos": lambda: byte_tokenizer(pad_token="<|endoftext|>"),
    "pythia": lambda: byte_tokenizer(special="<|padding|>", bos_token="<|endoftext|>"),
    "llama": lambda: byte_tokenizer(special="<|begin|> <|reserved_special_token_0|> <|eot|>", bos_token="<|begin|>"),
    "qwen": lambda: byte_tokenizer(special="<|im_start|> <|vision_pad|>", pad_token="<|endoftext|>"),
}  # fmt: skip
SPARE = {"pythia": "<|padding|>", "llama": "<|reserved_special_token_0|>", "qwen": "<|vision_pad|>"}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("side", ["left", "right"])
def test_hostile_tokenizer_ends_dedicated(tmp_path, name, side):
    tokenizer = HOSTILE[name]()
    tokenizer.padding_side = side
    size = len(tokenizer)
    model = toy.tiny_model(vocab=size, eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    before = model(input_ids=torch.arange(5)[None]).logits
    prepare_tokenizer(tokenizer, model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    loaded, again = load_tokenizer(tmp_path), load_model(tmp_path, device="cpu")
    assert loaded.pad_token_id not in (loaded.eos_token_id, loaded.unk_token_id)
    assert loaded.padding_side == "right"
    for config in (again.config, again.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (loaded.pad_token_id, loaded.eos_token_id)
    if name in SPARE:
        assert loaded.pad_token == SPARE[name]
        assert len(loaded) == size
    torch.testing.assert_close(again(input_ids=torch.arange(5)[None]).logits[..., :size], before)
    prompt_ids, ids = encode_prompt(loaded, PROMPT), encode_response(loaded, PROMPT, ANSWER)
    assert ids[-1] == loaded.eos_token_id
    assert ids.count(loaded.eos_token_id) == 1
    whole = loaded.apply_chat_template([*PROMPT, ANSWER], return_dict=False)
    assert [*prompt_ids, *ids] == whole


def test_preparing_twice_changes_nothing():
    tokenizer, model = toy.tiny_tokenizer(pad=None), toy.tiny_model(vocab=37)
    prepare_tokenizer(tokenizer, model)
    template, size, weights = tokenizer.chat_template, len(tokenizer), model.get_input_embeddings().weight.clone()
    prepare_tokenizer(tokenizer, model)
    assert (tokenizer.chat_template, len(tokenizer)) == (template, size)
    assert torch.equal(model.get_input_embeddings().weight, weights)


def test_new_rows_are_the_mean():
    model = toy.tiny_model(vocab=37)
    mean = model.get_output_embeddings().weight.mean(0)
    prepare_tokenizer(toy.tiny_tokenizer(pad=None), model)
    torch.testing.assert_close(model.get_output_embeddings().weight[37], mean)


def test_good_tokenizer_keeps_its_template():
    tokenizer = toy.tiny_tokenizer()
    prepare_tokenizer(tokenizer, toy.tiny_model())
    assert tokenizer.chat_template == toy.TEMPLATE
    assert tokenizer.pad_token == "<pad>"


def test_tokenizer_without_eos_is_refused():
    with pytest.raises(InputError, match="no EOS token"):
        prepare_tokenizer(toy.tiny_tokenizer(eos=None), toy.tiny_model())


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (toy.tiny_tokenizer(pad="<eos>"), "the pad token is '<eos>'"),
        (toy.tiny_tokenizer(pad=None), "the pad token is None"),
        (toy.tiny_tokenizer(template=None), "no chat template"),
        (toy.tiny_tokenizer(eos=None), "no EOS token"),
    ],
)
def test_unprepared_tokenizer_is_refused(tmp_path, tokenizer, message):
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: no usable tokenizer"):
        load_tokenizer(tmp_path)


# ------------------------------------------------------------------------------------------------- conversations


def test_response_where_a_token_would_span_the_boundary():
    tokenizer = byte_tokenizer(special="<|padding|>")
    prepare_tokenizer(tokenizer, toy.tiny_model(vocab=len(tokenizer)))
    assert "\n\n" in [tokenizer.decode([i]) for i in range(len(tokenizer))]
    answer = {"role": "assistant", "content": "\nthe fox"}
    prompt_ids, ids = encode_prompt(tokenizer, PROMPT), encode_response(tokenizer, PROMPT, answer)
    text = tokenizer.apply_chat_template([*PROMPT, answer], tokenize=False)
    assert tokenizer.decode([*prompt_ids, *ids]) == text
    assert tokenizer.decode(ids) == "\nthe fox<|endoftext|>"


def test_several_turns():
    tokenizer = byte_tokenizer(special="<|padding|>")
    prepare_tokenizer(tokenizer, toy.tiny_model(vocab=len(tokenizer)))
    messages = [{"role": "system", "content": "Be brief."}, *PROMPT, ANSWER, *toy.user("and the owl ?")]
    assert tokenizer.decode(encode_prompt(tokenizer, messages)) == (
        "<|system|>\nBe brief.<|endoftext|>\n<|user|>\nwhat is the fox ?<|endoftext|>\n<|assistant|>\n"
        "the fox is red .<|endoftext|>\n<|user|>\nand the owl ?<|endoftext|>\n<|assistant|>\n"
    )


def test_template_that_refuses_the_messages():
    tokenizer = toy.tiny_tokenizer(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="roles must alternate"):
        encode_prompt(tokenizer, PROMPT)


# -------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("architecture", ["gpt_neox", "qwen3", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_load(tmp_path, architecture, attention):
    folder = toy.tiny_folder(tmp_path / "m", architecture, dropout=0.3)
    model = load_model(folder, attention=attention, dtype="float64", device="cpu")
    assert model.config._attn_implementation == attention
    assert model.dtype == torch.float64
    model.train()  # dropout must be off even then
    first, second = (model(input_ids=torch.arange(8)[None]).logits for _ in range(2))
    assert torch.equal(first, second)


def broken(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop(weights: dict) -> None:
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]


def spoil(weights: dict) -> None:
    weights["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"][3] = torch.nan


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "is not a folder"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "config.json").write_text("{"), "cannot load the model"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:9000]), "cannot load"),
        (lambda f: broken(f, drop), r"1 weights are missing, such as gpt_neox.layers.1.mlp.dense_h_to_4h.weight"),
        (lambda f: broken(f, spoil), r"gpt_neox.layers.1.mlp.dense_h_to_4h.bias is not finite"),
    ],
)
@pytest.mark.parametrize("load", [load_model, Critic.from_pretrained])
def test_broken_folder(tmp_path, damage, message, load):
    folder = toy.tiny_folder(tmp_path / "m")
    damage(folder)
    if load is not load_model and "weights are missing" in message:
        message = "2 weights are missing"  # the head of a causal model's folder is, too
    elif load is not load_model and "not finite" in message:
        message = "weights are missing, such as score.weight"
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_vocabulary_of_another_model(tmp_path):
    toy.tiny_folder(tmp_path, vocab=30)
    with pytest.raises(InputError, match="the tokenizer has 38 tokens and the model 30 embeddings"):
        load_model(tmp_path)


def test_damaged_weights_are_found_without_loading_them(tmp_path):
    folder = toy.tiny_folder(tmp_path / "m")
    check_folder(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated or broken"):
        check_folder(folder)


def test_length_in_the_context():
    model = toy.tiny_model()
    context = model.config.max_position_embeddings
    assert context_length(model) == context_length(model.config) == context
    assert usable_length(model, None) == context
    assert usable_length(model.config, context) == context
    with pytest.raises(InputError, match=f"max_length = {context + 1} is above the model's context of {context} tok"):
        usable_length(model, context + 1)
    model.config = SimpleNamespace(get_text_config=SimpleNamespace)  # of another kind of model
    assert context_length(model) is None
    assert usable_length(model, 10_000) == 10_000


def test_download_copies_a_local_folder(tmp_path):
    folder = toy.tiny_folder(tmp_path / "published")
    hub.download_base({"source": "hub", "name": str(folder)}, tmp_path / "base")
    assert set(toy.same_files(folder, tmp_path / "base")) == {"source.json"}
    load_model(tmp_path / "base", device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        hub.download_base({"name": str(folder)}, tmp_path / "base")
    assert (tmp_path / "base/model.safetensors").exists()


def test_a_template_that_thinks_is_replaced(tmp_path):
    """Qwen 3's writes its thoughts into answers, empty ones too, and a line break after EOS; ours has neither."""
    tokenizer = byte_tokenizer(special="<|im_end|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{% endif %}"
    )
    model = toy.tiny_model(vocab=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    prepare_tokenizer(tokenizer, model)
    ids = [*encode_prompt(tokenizer, PROMPT), *encode_response(tokenizer, PROMPT, ANSWER)]
    assert (
        tokenizer.decode(ids)
        == f"<|user|>\n{PROMPT[0]['content']}<|im_end|>\n<|assistant|>\n{ANSWER['content']}<|im_end|>"
    )


def test_a_download_records_its_checksum_and_is_held_to_it(tmp_path):
    folder = toy.tiny_folder(tmp_path / "published")
    hub.download_base({"name": str(folder)}, tmp_path / "base")
    recorded = json.loads((tmp_path / "base/source.json").read_text())
    sums = subprocess.run(
        "sha256sum * | sha256sum",
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert recorded == {"name": "published", "revision": None, "sha256": sums.stdout.split()[0]}
    hub.download_base({"name": str(folder), "sha256": recorded["sha256"]}, tmp_path / "again")
    (folder / "chat_template.jinja").write_text("other")
    with pytest.raises(InputError, match=rf"published has the SHA-256 \w+, not {recorded['sha256']}: another version"):
        hub.download_base({"name": str(folder), "sha256": recorded["sha256"]}, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_download_from_the_hub_is_of_the_revision_and_keeps_nothing_else(tmp_path, monkeypatch):
    """The hub's client, replaced by one that serves a folder; an earlier attempt left a file behind."""
    folder = toy.tiny_folder(tmp_path / "published")
    asked = []

    class Api:
        def model_info(self, name, revision):
            asked.append((name, revision))
            return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=f.name) for f in folder.iterdir()])

    def snapshot_download(name, revision, local_dir, **_):
        asked.append((name, revision))
        shutil.copytree(folder, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / ".base.partial").mkdir()
    (tmp_path / ".base.partial/normalisation.json").write_text("{}")
    hub.download_base({"name": "org/model", "revision": "v1"}, tmp_path / "base")
    assert asked == [("org/model", "v1"), ("org/model", "c0ffee")]
    recorded = json.loads((tmp_path / "base/source.json").read_text())
    assert recorded == {"name": "org/model", "revision": "c0ffee", "sha256": hub.folder_sha256(folder)}
    with pytest.raises(InputError, match="org/model has the SHA-256"):
        hub.download_base({"name": "org/model", "sha256": 64 * "0"}, tmp_path / "other")


@pytest.mark.parametrize("spare_rows", [0, 4])
@pytest.mark.parametrize("name", ["pythia", "qwen", "bytes, pad is eos"])
def test_a_downloaded_base_model_is_prepared(tmp_path, name, spare_rows):
    tokenizer = HOSTILE[name]()
    model = toy.tiny_model(vocab=len(tokenizer) + spare_rows, eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    tokenizer.save_pretrained(tmp_path / "published")
    model.save_pretrained(tmp_path / "published")
    hub.download_base({"source": "hub", "name": str(tmp_path / "published")}, tmp_path / "base")
    loaded, again = load_tokenizer(tmp_path / "base"), load_model(tmp_path / "base", device="cpu")
    assert again.config.pad_token_id == loaded.pad_token_id != loaded.eos_token_id
    ids = torch.arange(5)[None]
    torch.testing.assert_close(
        again(input_ids=ids).logits[..., : len(tokenizer)], model(input_ids=ids).logits[..., : len(tokenizer)]
    )


def test_batch_masks_come_from_lengths():
    pad = 2
    batch = collate([[5, pad], [6]], [[pad, 7, 1], [1]], pad)
    assert batch.attention_mask_BL.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.loss_mask_BT.tolist() == [[False, True, True, True], [True, False, False, False]]


@pytest.mark.parametrize("architecture", ["gpt_neox", "qwen3", "llama"])
def test_token_logps_do_not_depend_on_padding(architecture):
    model = toy.tiny_model(architecture, dtype=torch.float64)
    prompts, responses = [[5, 6, 7], [9]], [[8, 1], [10, 11, 12, 13, 1]]
    together = token_logps(model, collate(prompts, responses, 2))
    for row in range(2):
        alone = token_logps(model, collate(prompts[row : row + 1], responses[row : row + 1], 2))
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=0, atol=1e-12)
        assert (together[row, alone.shape[1] :] == 0).all()
    ids = torch.tensor([prompts[0] + responses[0]])
    logps = model(input_ids=ids).logits.log_softmax(-1)
    assert together[0, 2].item() == pytest.approx(logps[0, 2, 8].item(), abs=1e-12)
