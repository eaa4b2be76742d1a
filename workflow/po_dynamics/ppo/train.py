"""PPO and its family: roll out, score, estimate advantages, update.

Reads from top to bottom: `train_online`, then the three parts of an update in `Run`. Left out on purpose: a backbone
shared by policy and critic, dual clipping, off-policy reuse of roll-outs, value bootstrapping of truncated responses
(they count as terminal; their share is logged as 1 − eos_rate).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from po_dynamics.models import reward_models
from po_dynamics.models.batches import collate
from po_dynamics.models.loading import load_model
from po_dynamics.models.sampling import Response, Rollout, Sampling, check, engine, mix, row_uniforms
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.models.vllm import VLLMRollout
from po_dynamics.objectives.declaration import Objective
from po_dynamics.ppo import advantages
from po_dynamics.ppo import metrics as ppo_metrics
from po_dynamics.ppo import state as ppo_state
from po_dynamics.ppo.division import check_processes, group_size
from po_dynamics.ppo.experience import (
    Experience,
    Prompt,
    all_logps,
    all_values,
    assess,
    epoch_order,
    last_columns,
    load_prompts,
    penalised,
    sampling_of,
    score_responses,
)
from po_dynamics.ppo.probe_rollouts import RolloutSample, fresh_rollouts
from po_dynamics.ppo.settings import PPOSettings
from po_dynamics.ppo.update import Learner, NonFiniteError, Update, set_learning_rates
from po_dynamics.storage import sharding
from po_dynamics.storage.state import Termination, TrainingLog, open_state, require_finite

__all__ = ["PPOSettings", "RolloutSample", "fresh_rollouts", "train_online"]


def train_online(
    policy: Path,
    reward: str | Path,
    prompts: Path,
    output: Path,
    log: Path,
    state: Path,
    objective: Objective,
    settings: Mapping[str, Any],
    seed: int,
    reference: Path | None = None,
    first_step: int = 0,
) -> None:
    """Trains `policy` (the SFT model) on the prompts of a preferences.parquet and writes checkpoints and a log.

    `reward` is a reward-model folder or "module:function"; `reference` the model of the KL penalty (default: `policy`);
    `settings` is models.<m>.online. Checkpoints are `output`/step-<t>/, t = completed updates (roll-out batches), `log`
    is training.csv. Until the run is complete everything lives in `state`; killed and started again, it continues and
    ends bit-identical on a CPU. SIGTERM saves and exits with 143. Runs under `accelerate launch` on several processes.
    Raises InputError for bad inputs before any training, and for losses, gradients or rewards that are not finite.
    """
    options = PPOSettings.of(settings, "online")
    group_size(options, objective)  # refuses a group of one
    run = Run(policy, reward, reference or policy, prompts, state, objective, options, seed)
    signature: dict[str, Any] = {
        "policy": policy,
        "reward": reward,
        "reference": reference,
        "prompts": prompts,
        "seed": seed,
    }
    signature |= {
        "objective": objective.name,
        "parameters": objective.parameters,
        "settings": options.resolved(),
        "first_step": first_step,
    }
    step = run.open({name: str(value) for name, value in signature.items()}, first_step)

    with Termination() as termination, run.progress(step) as bar:
        while step < options.max_steps:
            started = time.perf_counter()
            rollouts = run.roll_out(step)
            experience = run.evaluate(rollouts, step)
            metrics = run.learn(rollouts, experience, step)
            step += 1
            run.record(step, metrics)
            speed = options.batch_size / (time.perf_counter() - started)
            bar.set_postfix(ppo_metrics.postfix(metrics, speed), refresh=False)
            bar.update()
            stop = run.anyone(termination.requested)
            run.keep(step, save=stop)
            if stop and step < options.max_steps:
                termination.exit()
    run.finish(output, log)


class Rollouts(NamedTuple):
    """The responses of a global batch, from all processes; scores are the reward source's own."""

    prompts: list[Prompt]
    responses: list[Response]
    scores_B: Tensor


class Run:
    """The models and data of a run; every method is called by all processes."""

    def __init__(
        self,
        policy: Path,
        reward: str | Path,
        reference: Path,
        prompts: Path,
        state: Path,
        objective: Objective,
        options: PPOSettings,
        seed: int,
    ) -> None:
        # No broadcast of (constant) buffers: forward passes then hold no collective, and their number may differ.
        independent = DistributedDataParallelKwargs(broadcast_buffers=False)
        precision = "bf16" if options.precision == "bf16" else "no"
        self.accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[independent])
        check_processes(options, self.accelerator.num_processes)
        self.objective, self.options, self.seed, self.state = objective, options, seed, state
        self.tokenizer = load_tokenizer(policy)
        self.sampling = sampling_of(options, self.tokenizer)
        self.prompts, too_long = load_prompts(prompts, self.tokenizer, options.max_prompt_length)
        ids = [prompt.ids for prompt in self.prompts]
        check(ids, self.sampling, getattr(AutoConfig.from_pretrained(policy), "max_position_embeddings", None))
        if self.accelerator.is_main_process:
            ppo_metrics.announce(options, self.accelerator.num_processes, len(self.prompts), too_long)
        device = self.accelerator.device
        self.scorer = reward_models.load(reward, self.tokenizer, options.micro_batch_size, device)
        self.reference = load_model(reference, device=device).requires_grad_(False)
        self.learner = ppo_state.make_learner(policy, reward, options, self.accelerator)
        self.rollout = make_rollout(self.learner, self.sampling, options, self.tokenizer)
        self.log = TrainingLog(state / "training.csv")
        self.kl_coefficient = options.kl_coefficient

    def open(self, signature: Mapping[str, Any], first_step: int) -> int:
        """Continues from the saved state of this very run, or starts; returns the completed updates."""
        if self.accelerator.is_main_process:
            open_state(self.state, signature)
        self.accelerator.wait_for_everyone()
        step, stored = first_step, ppo_state.restore(self.state, self.learner)
        if stored is not None:
            step, self.kl_coefficient = stored
            ppo_state.require_checkpoints(self.state, [s for s in self.options.checkpoints if first_step <= s <= step])
        if self.accelerator.is_main_process:
            self.log.rewind(step)
        if step == first_step:
            self.keep(step)
        return step

    def roll_out(self, step: int) -> Rollouts:
        """Samples and scores; each process takes its share, and every row has random numbers of its own."""
        size = self.options.batch_size
        repeats = self.options.rollouts_per_prompt
        rows = epoch_order(len(self.prompts), step * size // repeats, size // repeats, self.seed)
        prompts, mine = [self.prompts[row] for row in rows for _ in range(repeats)], self.share(size)
        uniforms_BR = row_uniforms(size, self.sampling, (self.seed, 0, step))
        with self.accelerator.autocast():
            own = self.rollout([prompt.ids for prompt in prompts[mine]], uniforms_BR[mine])
        own_scores_B = score_responses(self.scorer, prompts[mine], own, self.tokenizer)
        scores_B = torch.tensor(self.gathered(own_scores_B.tolist()))
        if bad := (~scores_B.isfinite()).nonzero().flatten().tolist():
            self.refuse("the reward", float(scores_B[bad[0]]), [prompts[row].id for row in bad], step)
        return Rollouts(prompts, self.gathered(own), scores_B)

    def evaluate(self, rollouts: Rollouts, step: int) -> Experience:
        """Old log-probs by the code path of the update, reference log-probs, values; advantages of the whole batch.

        Each process computes its share; whitening comes after gathering.
        """
        options, device, pad = self.options, self.accelerator.device, self.sampling.pad_id
        batch = collate([p.ids for p in rollouts.prompts], [r.ids for r in rollouts.responses], pad).to(device)
        mine, size = self.share(len(rollouts.prompts)), options.micro_batch_size
        own = type(batch)(*(part[mine] for part in batch))
        with self.accelerator.autocast():
            columns = (
                all_logps(self.learner.policy, own, options.temperature, size),
                all_logps(self.reference, own, options.temperature, size),
                all_values(self.learner.critic, own, own.loss_mask_BT, size),
            )
        logps_BT, ref_logps_BT, values_BT = (self.accelerator.gather(column) for column in columns)
        scores_B = penalised(rollouts.scores_B, rollouts.responses, options).to(device)
        columns_B = advantages.score_columns(last_columns(batch), batch.loss_mask_BT.shape[1])
        return assess(
            batch,
            batch.loss_mask_BT,
            columns_B,
            scores_B,
            logps_BT,
            ref_logps_BT,
            values_BT,
            options,
            self.kl_coefficient,
            group_size(options, self.objective),
        )

    def learn(self, rollouts: Rollouts, experience: Experience, step: int) -> dict[str, float]:
        """Epochs of seeded permutations, one optimizer step per mini-batch; then the KL coefficient adapts."""
        options = self.options
        set_learning_rates(self.learner, options, step)
        update = Update(self.learner, self.objective, options, step)
        seeds = [mix(self.seed, 4, step, epoch) for epoch in range(options.epochs)]
        try:
            update(experience, [epoch_order(options.batch_size, 0, options.batch_size, seed) for seed in seeds])
        except NonFiniteError as error:
            self.refuse(error.what, error.value, [rollouts.prompts[row].id for row in error.rows], step)
        metrics = ppo_metrics.of_rollouts(experience, rollouts.responses, rollouts.scores_B) | update.metrics()
        metrics |= {
            "kl_coefficient": self.kl_coefficient,
            "learning_rate": options.learning_rate * options.lr_factor(step),
        }
        self.kl_coefficient = advantages.adapt_kl_coefficient(
            self.kl_coefficient, metrics["kl_per_response"], options.kl_target, options.batch_size, options.kl_horizon
        )
        return metrics

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.log.append(step, metrics)

    def keep(self, step: int, save: bool = False) -> None:
        """The probe's checkpoint where one is due, then the resumable state: no checkpoint is ever behind the state."""
        if step in self.options.checkpoints:
            set_learning_rates(self.learner, self.options, step)  # a checkpoint tells the rate of the step to come
            ppo_state.save_checkpoint(self.state, self.learner, self.tokenizer, step, self.kl_coefficient)
        if save or step == self.options.max_steps or (step and step % self.options.save_every == 0):
            ppo_state.save(self.state, self.learner, step, self.kl_coefficient)

    def finish(self, output: Path, log: Path) -> None:
        if self.accelerator.is_main_process:
            ppo_state.publish(self.state, output, log)
        self.accelerator.wait_for_everyone()

    def refuse(self, what: str, value: float, ids: list[str], step: int) -> None:
        good = ppo_state.last_checkpoint(self.state, step)
        require_finite(value, what=what, step=step, sample_ids=ids, last_good=good)

    def share(self, rows: int) -> slice:
        """This process's part of a batch."""
        each = rows // self.accelerator.num_processes
        return slice(self.accelerator.process_index * each, (self.accelerator.process_index + 1) * each)

    def gathered(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in order."""
        return items if self.accelerator.num_processes == 1 else gather_object(items)

    def anyone(self, flag: bool) -> bool:
        """True where any process says so: a cluster may warn only one of them."""
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum") > 0)

    def progress(self, step: int) -> Any:
        return ppo_metrics.progress(step, self.options.max_steps, self.accelerator.is_main_process)


def make_rollout(
    learner: Learner, sampling: Sampling, options: PPOSettings, tokenizer: PreTrainedTokenizerBase
) -> Rollout:
    """The engine that the settings name, sampling from the live policy."""
    model: PreTrainedModel = learner.accelerator.unwrap_model(learner.policy)
    if options.rollout == "vllm":

        def save(folder: Path) -> None:
            model.save_pretrained(folder, state_dict=sharding.weights(model, everywhere=True))
            tokenizer.save_pretrained(folder)

        return VLLMRollout(save, sampling)
    # Decoding holds no activations: four times the training micro-batch fits.
    return engine(options.rollout, model, sampling, 4 * options.micro_batch_size)
