"""ArmoRM's multi-objective reward model with a gating head, without remote code (Wang et al. 2024, arXiv 2406.12845).

score = Σ_k g_k(x) · (r · M)_k, where r = W h(last token) are the 19 objectives' rewards, M takes the verbosity
correlation out, and g = softmax(MLP(h(gate token)) / temperature) · scale is computed from the prompt alone: the gate
token is the one that closes the user's turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel

from po_dynamics.errors import InputError
from po_dynamics.models.batches import Batch

ARCHITECTURE = "LlamaForRewardModelWithGating"
# <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n of Llama 3; a config may name another one.
GATE_PATTERN = (128009, 128006, 78191, 128007, 271)


class Gating(nn.Module):
    """Weights of the objectives from the prompt's hidden state: linear layers with ReLU between, then a softmax."""

    def __init__(self, width: int, objectives: int, hidden: int, depth: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.logit_scale = nn.Parameter(torch.ones(1))
        widths = [width] + [hidden] * depth + [objectives]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, hidden_BH: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            hidden_BH = layer(hidden_BH).relu()
        return (self.layers[-1](hidden_BH) / self.temperature).softmax(-1) * self.logit_scale


class ArmoRM(LlamaPreTrainedModel):
    """Loads the published weights by name (`from_pretrained`)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        objectives = getattr(config, "num_objectives", 19)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(objectives), requires_grad=False)
        self.gating = Gating(
            config.hidden_size,
            objectives,
            getattr(config, "gating_hidden_dim", 1024),
            getattr(config, "gating_n_hidden", 3),
            getattr(config, "gating_temperature", 10.0),
        )
        self.gate_pattern = tuple(getattr(config, "gating_token_pattern", GATE_PATTERN))
        self.post_init()

    def forward(self, batch: Batch) -> Tensor:
        """Scores of right-padded conversations, (B,), float32."""
        hidden_BLH = self.model(
            input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL, use_cache=False
        ).last_hidden_state
        rows_B = torch.arange(len(hidden_BLH), device=hidden_BLH.device)
        lengths_B = batch.attention_mask_BL.sum(1)
        gates = [
            gate_position(ids[:length], self.gate_pattern)
            for ids, length in zip(batch.input_ids_BL.tolist(), lengths_B.tolist(), strict=True)
        ]
        rewards_BK = self.regression_layer(hidden_BLH[rows_B, lengths_B - 1]) @ self.reward_transform_matrix
        weights_BK = self.gating(hidden_BLH[rows_B, torch.tensor(gates, device=rows_B.device)])
        return (weights_BK * rewards_BK).sum(-1).float()


def gate_position(ids: Sequence[int], pattern: Sequence[int]) -> int:
    """Where the last occurrence of `pattern` starts; InputError where there is none."""
    for start in range(len(ids) - len(pattern), -1, -1):
        if list(ids[start : start + len(pattern)]) == list(pattern):
            return start
    raise InputError(
        f"ArmoRM: the tokens {list(pattern)} that open the assistant's turn are not in the conversation: "
        "use the tokenizer and chat template published with the model"
    )
