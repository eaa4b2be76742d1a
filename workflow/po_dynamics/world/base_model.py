"""The embedded world's base model: a tiny GPT-NeoX (Black et al. 2022) trained from scratch on the world's corpus."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerBase

from po_dynamics.data.order import ShuffledRows
from po_dynamics.errors import InputError
from po_dynamics.models.loading import default_device
from po_dynamics.settings.models import WorldBase
from po_dynamics.storage.atomic import atomic_file
from po_dynamics.storage.checkpoints import publish
from po_dynamics.storage.parquet import read_table
from po_dynamics.storage.state import Termination, TrainingLog, identity, open_state, require_finite

WARMUP = 0.05  # share of the steps
IGNORED = -100


class Run(NamedTuple):
    """What a step changes, and the documents it reads."""

    model: GPTNeoXForCausalLM
    optimizer: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.LambdaLR
    documents: list[list[int]]
    pad_id: int


def pretrain_base(
    data: Path, tokenizer: Path, output: Path, state: Path, settings: Mapping[str, Any] | WorldBase
) -> None:
    """Trains the base model on `data` (Parquet, column `text`) and writes it with its tokenizer to `output`.

    Killed at any moment and called again with the same `state`, it ends bit-identical (CPU) to an uninterrupted run; on
    SIGTERM it saves first and exits with status 143.

    Args:
        output: model, tokenizer and `training.csv` (step, loss in nats per token, learning_rate, grad_norm, tokens).
        state: resumable state; removed on success.
        settings: `models.<model>.base` of the configuration.

    Raises:
        InputError: bad data or settings, before any training; a loss that is not finite.
    """
    settings = WorldBase.of(settings, "base")
    texts = read_table(data, ["text"])["text"].to_pylist()
    encoder = AutoTokenizer.from_pretrained(tokenizer, model_max_length=settings.max_length)
    documents = encode_documents(texts, encoder, settings.max_length, data)
    open_state(
        state,
        {"settings": settings.resolved(), "data": identity(data), "vocabulary": sorted(encoder.get_vocab().items())},
    )
    run = _start(settings, documents, encoder)
    train(run, state, settings)
    run.model.to("cpu")  # type: ignore[arg-type]
    publish(run.model, encoder, output, state, {})


def encode_documents(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, path: Path
) -> list[list[int]]:
    """Token ids of each document with the end-of-sequence token; one that exceeds the context is an InputError."""
    documents = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, truncation=False)["input_ids"]]
    for index, ids in enumerate(documents):
        if len(ids) > max_length:
            raise InputError(
                f"{path}: document {index} has {len(ids)} tokens, more than the base model's max_length = "
                f"{max_length}; raise max_length"
            )
    return documents


def _start(settings: WorldBase, documents: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> Run:
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        use_parallel_residual=True,
        tie_word_embeddings=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # initialisation draws from the global generator
        torch.manual_seed(settings.seed)
        model = GPTNeoXForCausalLM(config)
    model.to(default_device()).train()  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    steps, warmup = settings.steps, max(1, round(WARMUP * settings.steps))

    def factor(step: int) -> float:
        """Linear warm-up, then a cosine to a tenth."""
        if step < warmup:
            return (step + 1) / warmup
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return Run(
        model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor), documents, tokenizer.pad_token_id
    )


def train(run: Run, state: Path, settings: WorldBase) -> None:
    """Trains to `settings.steps`, from the state in `state` if there is one; saves every `save_every` steps."""
    batch_size, steps = settings.batch_size, settings.steps
    lengths = [len(ids) for ids in run.documents]
    order = ShuffledRows(range(len(lengths)), steps * batch_size, settings.seed, lengths, batch_size)
    done, log = _restore(run, state), TrainingLog(state / "training.csv")
    log.rewind(done)
    clock, tokens = time.monotonic(), 0
    with (
        Termination() as termination,
        tqdm(total=steps, initial=done, desc="pre-training", unit="step", mininterval=5) as bar,
    ):
        for step in range(done + 1, steps + 1):
            rows = [order[(step - 1) * batch_size + place] for place in range(batch_size)]
            values = _step(run, rows, step, state)
            log.append(step, values)
            tokens += int(values["tokens"])
            speed = tokens / (time.monotonic() - clock)
            bar.set_postfix(loss=f"{values['loss']:.4f}", tokens_per_s=f"{speed:,.0f}", refresh=False)
            bar.update()
            if step % settings.save_every == 0 or step == steps or termination.requested:
                _save(run, state, step)
            if termination.requested and step < steps:
                print(f"pre-training: stopped by SIGTERM after step {step}, state saved", file=sys.stderr)
                termination.exit()


def _step(run: Run, rows: list[int], step: int, state: Path) -> dict[str, float]:
    """One update on these documents; the loss is the mean over all predicted tokens, in nats."""
    ids_BL, labels_BT = collate_documents([run.documents[row] for row in rows], run.pad_id)
    device = run.model.device
    # Right padding needs no attention mask under causal attention, and pads carry no loss.
    logits_BTV = run.model(input_ids=ids_BL.to(device), use_cache=False).logits[:, :-1]
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten().to(device), ignore_index=IGNORED)
    last = state / "state.pt"
    good = last if last.exists() else None
    value = float(loss.detach())
    require_finite(value, what="the loss", step=step, sample_ids=list(rows), last_good=good)
    run.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    require_finite(float(norm), what="the gradient norm", step=step, sample_ids=list(rows), last_good=good)
    rate = run.optimizer.param_groups[0]["lr"]
    run.optimizer.step()
    run.schedule.step()
    tokens = int((labels_BT != IGNORED).sum())
    return {"loss": value, "learning_rate": rate, "grad_norm": float(norm), "tokens": tokens}


def collate_documents(documents: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, L), and the labels of the L - 1 predictions, `IGNORED` on padding."""
    length = max(map(len, documents))
    ids_BL = torch.full((len(documents), length), pad_id)
    labels_BL = torch.full((len(documents), length), IGNORED)
    for row, ids in enumerate(documents):
        ids_BL[row, : len(ids)] = labels_BL[row, : len(ids)] = torch.tensor(ids)
    return ids_BL, labels_BL[:, 1:]


def _save(run: Run, state: Path, step: int) -> None:
    content = {
        "step": step,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
    }
    with atomic_file(state / "state.pt") as temporary:
        torch.save(content, temporary)


def _restore(run: Run, state: Path) -> int:
    """Loads the last saved state; returns the number of completed steps."""
    file = state / "state.pt"
    if not file.exists():
        return 0
    content = torch.load(file, map_location=run.model.device, weights_only=True)
    run.model.load_state_dict(content["model"])
    run.optimizer.load_state_dict(content["optimizer"])
    run.schedule.load_state_dict(content["schedule"])
    return int(content["step"])
