"""Level 3 of PPO's parity: initial weights and sampled tokens → the whole trajectory to the final weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from po_dynamics.models.batches import Batch, collate
from po_dynamics.models.critic import Critic, final_values
from po_dynamics.models.loading import turn_off_dropout
from po_dynamics.parity.advantages import Replay, estimate, penalised_scores
from po_dynamics.parity.cases import Case, Quantity, Reading, compare, read, worst
from po_dynamics.parity.update import MicroBatch, TrlUpdate, losses
from po_dynamics.ppo.advantages import kl_estimate
from po_dynamics.ppo.experience import all_logps, all_values
from po_dynamics.ppo.update import Learner, make_optimizer, set_learning_rates


class Positions(nn.Module):
    """A model on TRL's left-padded rows: positions count the attended tokens.

    With `float32`, logits are rounded as `generate` rounds its scores.
    """

    def __init__(self, model: nn.Module, float32: bool = False) -> None:
        super().__init__()
        self.model, self.float32 = model, float32

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        positions = attention_mask.cumsum(1) - attention_mask
        output = self.model(attention_mask=attention_mask, position_ids=positions, **inputs)
        if self.float32:
            output.logits = output.logits.float()
        return output


def build(case: Case, role: str) -> nn.Module:
    """A model of the case with its initial weights, float64, dropout off; `value` and `reward` as a `Critic`."""
    settings = dict(case.meta["model_config"])
    attention = settings.pop("attn_implementation", "sdpa")
    config = AutoConfig.for_model(settings.pop("model_type", "gpt_neox"), **settings)
    kind: Any = AutoModelForCausalLM
    if role in ("value", "reward"):
        kind, config.num_labels = AutoModelForSequenceClassification, 1
    turn_off_dropout(config)
    model = kind.from_config(config, attn_implementation=attention).double()
    prefix = f"init/{role}/"
    weights = {key.removeprefix(prefix): case(key) for key in case.arrays if key.startswith(prefix)}
    model.load_state_dict(weights, strict=True)
    return Critic(model) if role in ("value", "reward") else model


class Trajectory:
    """The updates of a case, each compared as it happens."""

    def __init__(self, case: Case) -> None:
        self.case, self.settings = case, case.settings()
        self.policy, self.critic = build(case, "policy"), build(case, "value")
        policy, critic = Positions(self.policy), Positions(self.critic)
        self.reference, self.reward = Positions(build(case, "ref")), build(case, "reward")
        rates = (self.settings.learning_rate, self.settings.weight_decay, self.settings.adam_epsilon)
        optimizers = make_optimizer(policy, *rates), make_optimizer(critic, *rates)
        self.learner = Learner(policy, critic, *optimizers, Accelerator(cpu=True))
        self.since_step = 0

    def __call__(self) -> Iterator[Quantity]:
        for update in self.case.updates:
            yield from self.update(update)
        models: list[tuple[str, Any]] = [("policy", self.policy), ("value", self.critic.model)]
        for role, model in models:
            errors = [worst(value, self.case(f"final/{role}/{name}")) for name, value in model.state_dict().items()]
            yield f"level 3: final/{role}", max(errors)

    def update(self, update: int) -> Iterator[Quantity]:
        case, u, reading = self.case, f"u{update}", read(self.case, update)
        replay, raw, scores_N = self.roll_out(update, reading)
        for name, (ours, mask) in raw.items():
            yield f"level 3: {name}", worst(ours[mask], case(f"{u}/{name}")[mask])
        estimated, context = replay.states.advantages, self.context(update)
        whole = {
            "scores_raw": scores_N,
            "rewards": estimated.rewards_BT[:, context:],
            "advantages": estimated.whitened_BT[:, context:],
            "returns": estimated.returns_BT[:, context:],
        }
        yield from compare(case, u, 3, whole)

        watch = Watch(case, update, replay, self.learner)
        set_learning_rates(self.learner, self.settings, update)
        run = TrlUpdate(case, update, self.learner, watch)
        run.since_step = self.since_step
        run.replay(replay, [case(f"{u}/epoch{epoch}/b_inds").tolist() for epoch in range(self.settings.epochs)])
        self.since_step = run.since_step
        yield from watch.found
        yield from watch.metrics(reading, raw, scores_N)

    def context(self, update: int) -> int:
        """Columns of predictions before the response: C − 1."""
        return int(self.case(f"u{update}/context_length")) - 1

    def roll_out(self, update: int, reading: Reading) -> tuple[Replay, dict[str, tuple[Tensor, Tensor]], Tensor]:
        """The experience on TRL's rows, raw quantities with the entries to compare, and raw scores."""
        case, context, settings = self.case, self.context(update), self.settings
        sampled = case(f"u{update}/query_responses")
        attended = sampled != case.pad
        everything = torch.zeros(len(sampled), sampled.shape[1] - 1, dtype=torch.bool)
        everything[:, context:] = True
        batch = Batch(sampled.masked_fill(~attended, 0), attended.long(), everything)
        size, response = settings.micro_batch_size, slice(context, None)
        logps = all_logps(Positions(self.policy, float32=True), batch, settings.temperature, size)[:, response]
        ref_logps = all_logps(self.reference, batch, settings.temperature, size)[:, response]
        values = all_values(self.learner.critic, batch, size)[:, response]
        scores_N = self.scores(update, reading)
        # TRL's old log-probs are float32 sums in an order of their own. Where ours agree to rounding, the trajectory
        # goes on with the recorded ones: Adam would amplify the last bit where the true gradient is zero.
        recorded = case(f"u{update}/logprobs_raw")
        agrees = (logps - recorded).abs() <= 1e-6 * recorded.abs().clamp(min=1.0)
        old_logps = recorded.where(agrees, logps.double())
        estimated = estimate(case, reading, scores_N, old_logps, ref_logps, values)
        replay = estimated.columns(lambda part: nn.functional.pad(part, (context, 0)), batch)
        # A sampled pad is no target here; after one, TRL's generation scores attend to it, its forward pass does not.
        targets, always = attended[:, context + 1 :], torch.ones_like(reading.mask)
        raw = {
            "logprobs_raw": (logps, reading.mask),
            "ref_logprobs_raw": (ref_logps, targets),
            "values_raw": (values, always),
        }
        return replay, raw, scores_N

    def scores(self, update: int, reading: Reading) -> Tensor:
        """The reward model at the last token before the first pad, on right-padded rows."""
        queries = self.case(f"u{update}/query_responses")[:, : self.context(update) + 1].tolist()
        rows = [
            [token for token in [*query, *response[: int(last) + 1]] if token != self.case.pad]
            for query, response, last in zip(queries, reading.responses.tolist(), reading.last_N, strict=True)
        ]
        with torch.no_grad():
            return final_values(self.reward, collate([row[:-1] for row in rows], [row[-1:] for row in rows], 0))


def grad_norm(parameters: Iterator[nn.Parameter]) -> Tensor:
    """Euclidean norm of the gradients that are there."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class Watch:
    """Compares each micro-batch before the optimizers step, and then what TRL logs of the update."""

    def __init__(self, case: Case, update: int, replay: Replay, learner: Learner) -> None:
        self.case, self.update, self.replay, self.learner = case, update, replay, learner
        self.found: list[Quantity] = []
        self.context = int(case(f"u{update}/context_length")) - 1
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self, micro: MicroBatch) -> None:
        prefix, width = f"u{self.update}/micro{len(self.seen)}", self.replay.mask_BT.shape[1]
        rows = torch.tensor(micro.rows)

        def own(part_BT: Tensor) -> Tensor:
            return nn.functional.pad(part_BT, (0, width - part_BT.shape[1]))[:, self.context :]

        whole = self.replay.columns(lambda part_BT: part_BT[rows][:, self.context :], self.replay.states.batch)
        ours = losses(self.case, whole, own(micro.logps_BT), own(micro.values_BT))
        del ours["grad_new_logprobs"], ours["grad_vpred"]
        ours["inds"], ours["optimizer_stepped"] = rows, torch.tensor(micro.steps)
        ours["lr"] = torch.tensor(self.learner.policy_optimizer.param_groups[0]["lr"], dtype=torch.float64)
        norms = [grad_norm(model.parameters()) for model in (self.learner.policy, self.learner.critic)]
        ours["grad_norm_accumulated"] = torch.stack(norms).norm()
        ours["entropy_mean"] = self.entropy(rows)
        self.found += compare(self.case, prefix, 3, ours)
        self.seen.append(ours | {"ratio_mean": ours["ratio"].mean()})

    def entropy(self, rows: Tensor) -> Tensor:
        """Mean over all columns of the response, padding included, as TRL has it."""
        batch = self.replay.states.batch
        with torch.no_grad():
            logits = self.learner.policy(
                input_ids=batch.input_ids_BL[rows], attention_mask=batch.attention_mask_BL[rows], use_cache=False
            ).logits[:, self.context : -1]
        logps = (logits / self.case.settings().temperature).log_softmax(-1)
        return -(logps.exp() * logps).sum(-1).mean()

    def slots(self, values: list[Tensor]) -> Tensor:
        """TRL's table of epochs × mini-batches × accumulation: slots that no micro-batch fills stay 0 and count."""
        config = self.case.config
        size = config["num_ppo_epochs"] * config["num_mini_batches"] * config["gradient_accumulation_steps"]
        return torch.cat((torch.stack(values), torch.zeros(size - len(values), dtype=torch.float64)))

    def metrics(self, reading: Reading, raw: dict[str, tuple[Tensor, Tensor]], scores_N: Tensor) -> Iterator[Quantity]:
        """What TRL logs of the whole update."""
        case, settings = self.case, self.case.settings()
        golden = dict(zip(case.meta["metric_names"], case(f"u{self.update}/metrics"), strict=True))
        sampled = case(f"u{self.update}/query_responses")[:, self.context + 1 :]
        logps, experience = raw["logprobs_raw"][0], self.replay.states
        kl = kl_estimate(experience.old_logps_BT, experience.ref_logps_BT, settings.kl_estimator).sum(1)
        stats = {name: self.slots([seen[name].double() for seen in self.seen]) for name in AVERAGED}
        score = penalised_scores(case, reading, scores_N).mean()
        ours = {metric: stats[name].mean() for name, metric in AVERAGED.items()} | {
            "objective/kl": kl.mean(),
            "objective/entropy": -logps.masked_fill(~reading.mask, 0.0).sum(1).mean(),
            "objective/non_score_reward": -settings.kl_coefficient * kl.mean(),
            "objective/scores": score,
            "objective/rlhf_reward": score - settings.kl_coefficient * kl.mean(),
            "val/ratio_var": stats["ratio_mean"].var(),
            "val/num_eos_tokens": (sampled == case.eos).sum(),
            "lr": self.seen[-1]["lr"],
            "episode": torch.tensor(float((self.update + 1) * settings.batch_size)),
        }
        for name, value in ours.items():
            if name in golden:
                yield f"level 3: metrics {name}", worst(torch.as_tensor(value), golden[name])


AVERAGED = {
    "pg_loss": "loss/policy_avg",
    "vf_loss": "loss/value_avg",
    "approxkl": "policy/approxkl_avg",
    "pg_clipfrac": "policy/clipfrac_avg",
    "entropy_mean": "policy/entropy_avg",
    "vf_clipfrac": "val/clipfrac_avg",
    "ratio_mean": "val/ratio",
}
