"""A tiny random model with preference pairs, and runs of offline training on it."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from po_dynamics.objectives.registry import bind
from po_dynamics.training.offline import train_offline
from po_dynamics.training.reference import compute_reference
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<bot> ' }}{{ m['content'] }}"
    "{{ ' <eos> ' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}"
)
WORDS = ["<pad>", "<eos>", "<user>", "<bot>", "<unk>", *(f"w{i}" for i in range(27))]
SETTINGS = {
    "max_steps": 6,
    "batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 3e-3,
    "lr_schedule": "cosine",
    "warmup_ratio": 0.2,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "max_length": 32,
    "precision": "fp32",
    "gradient_checkpointing": False,
    "save_every": 2,
    "checkpoints": [0, 2, 3, 6],
}


def make_model(folder, seed=0):
    tokenizer = Tokenizer(tokenizer_models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)


def words(generator, low, high):
    n = int(torch.randint(low, high, (1,), generator=generator))
    return " ".join(f"w{i}" for i in torch.randint(0, 27, (n,), generator=generator).tolist())


def make_pairs(path, n=20, **override):
    g = torch.Generator().manual_seed(1)
    rows = [
        {
            "id": f"p{i}",
            "prompt": [{"role": "user", "content": words(g, 2, 8)}],
            "chosen": [{"role": "assistant", "content": words(g, 1, 9)}],
            "rejected": [{"role": "assistant", "content": words(g, 1, 9)}],
        }
        for i in range(n)
    ]
    rows[3] |= override
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_world(root):
    make_model(root / "sft")
    make_pairs(root / "preferences.parquet")
    compute_reference(root / "sft", root / "preferences.parquet", root / "reference.parquet", SETTINGS)
    return root


def train(world, root, *, objective="dpo", parameters=None, first_step=0, init=None, seed=0, **settings):
    train_offline(
        init=init or world / "sft",
        preferences=world / "preferences.parquet",
        reference=world / "reference.parquet",
        output=root / "checkpoints",
        log=root / "training.csv",
        state=root / "state",
        objective=bind(objective, parameters or {"beta": 0.1}),
        settings={**SETTINGS, **settings},
        seed=seed,
        first_step=first_step,
    )
    return root


def log_of(root):
    with open(root / "training.csv") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def weights(root, step):
    return load_file(root / "checkpoints" / f"step-{step}" / "model.safetensors")


def assert_same_files(a, b):
    files = sorted(str(f.relative_to(a)) for f in a.rglob("*") if f.is_file())
    assert files == sorted(str(f.relative_to(b)) for f in b.rglob("*") if f.is_file())
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file
