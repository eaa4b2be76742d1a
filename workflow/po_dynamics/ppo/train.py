"""PPO and its family: roll out, evaluate, learn.

Reads from the top: `train_online` is the loop, `Run` has its parts in order. What they do in detail is in `experience`
(prompts to advantages), `advantages` (the formulas) and `update` (epochs, mini-batches, losses). Left out on purpose: a
backbone shared by policy and critic, dual clipping, off-policy reuse of roll-outs, value bootstrapping of truncated
responses (they count as terminal; their share is logged as 1 − eos_rate).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from transformers import AutoConfig

from po_dynamics.data.tokens.table import open_prompts
from po_dynamics.models import reward_models
from po_dynamics.models.loading import context_length, load_model
from po_dynamics.models.sampling import check_lengths, mix
from po_dynamics.models.tokenizers import load_tokenizer
from po_dynamics.objectives.declaration import Objective
from po_dynamics.ppo import metrics as ppo_metrics
from po_dynamics.ppo import state as ppo_state
from po_dynamics.ppo.advantages import adapt_kl_coefficient
from po_dynamics.ppo.division import check_processes, group_size
from po_dynamics.ppo.experience import (
    Experience,
    Models,
    Rollouts,
    Sources,
    epoch_order,
    evaluate,
    roll_out,
    rollout_engine,
    sampling_law,
)
from po_dynamics.ppo.update import NonFiniteError, Update, set_learning_rates
from po_dynamics.settings.online import Online
from po_dynamics.storage.distributed import any_process
from po_dynamics.storage.moments import restore_moments
from po_dynamics.storage.state import Termination, TrainingLog, open_state, require_finite


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
    """Trains `policy` (the SFT model) on the prompts of a table of tokens and writes checkpoints and a log.

    `reward` is a reward-model folder or "module:function"; `reference` the model of the KL penalty (default: `policy`);
    `settings` is models.<m>.online. From a checkpoint `step-<first_step>` of another run the policy's AdamW goes on
    with the second moments stored there and no momentum; the critic's is new. Checkpoints are `output`/step-<t>/, t =
    completed updates (roll-out batches), `log` is training.csv. Until the run is complete everything lives in `state`;
    killed and started again, it continues and ends bit-identical on a CPU. SIGTERM saves and exits with 143. Runs under
    `accelerate launch` on several processes. Raises InputError for bad inputs before any training, and for losses,
    gradients or rewards that are not finite.
    """
    sources = Sources(policy, reward, reference or policy, prompts)
    run = Run(sources, state, objective, Online.of(settings, "online"), seed)
    step = run.open({**sources._asdict(), "seed": seed, "settings": settings}, first_step)

    with Termination() as termination, run.progress(step) as bar:
        while step < run.settings.max_steps:
            started = time.perf_counter()
            rollouts = run.roll_out(step)
            experience = run.evaluate(rollouts)
            metrics = run.learn(rollouts, experience, step)
            step += 1
            run.record(step, metrics)
            speed = run.settings.batch_size / (time.perf_counter() - started)
            bar.set_postfix(ppo_metrics.postfix(metrics, speed), refresh=False)
            bar.update()
            stop = any_process(termination.requested, run.accelerator.device)
            run.save_if_due(step, must=stop)
            if stop and step < run.settings.max_steps:
                termination.exit()
    run.finish(output, log)


class Run:
    """The models and data of a run; every method is called by all processes."""

    def __init__(self, sources: Sources, state: Path, objective: Objective, settings: Online, seed: int) -> None:
        self.objective, self.settings, self.seed, self.state = objective, settings, seed, state
        self.policy = sources.policy
        self.group_size = group_size(settings, objective)
        # No broadcast of (constant) buffers: forward passes then hold no collective, and their number may differ.
        independent = DistributedDataParallelKwargs(broadcast_buffers=False)
        precision = "bf16" if settings.precision == "bf16" else "no"
        self.accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[independent])
        processes, device = self.accelerator.num_processes, self.accelerator.device
        check_processes(settings, processes)
        tokenizer = load_tokenizer(sources.policy)
        self.prompts, use = open_prompts(sources.prompts, settings.max_prompt_length)
        context = context_length(AutoConfig.from_pretrained(sources.policy))
        check_lengths(self.prompts.lengths.tolist(), sampling_law(settings, tokenizer), context)
        if self.accelerator.is_main_process:
            ppo_metrics.announce(settings, processes, str(use))
        frozen = partial(ppo_state.place_frozen, accelerator=self.accelerator)
        scorer = reward_models.load(sources.reward, tokenizer, settings.micro_batch_size, device, frozen)
        reference = frozen(load_model(sources.reference, device="cpu"))
        self.learner = ppo_state.make_learner(sources.policy, sources.reward, settings, self.accelerator)
        policy, critic = self.learner.policy, self.learner.critic
        self.models = Models(policy, critic, reference, scorer, tokenizer, self.accelerator.autocast)
        self.rollout = rollout_engine(self.accelerator.unwrap_model(policy), settings, tokenizer)
        self.log = TrainingLog(state / "training.csv")
        self.kl_coefficient = settings.kl_coefficient

    def open(self, inputs: Mapping[str, Any], first_step: int) -> int:
        """Continues from the saved state of this very run, or starts; returns the completed updates.

        `inputs`, with the objective and the first step, tell whether the state is of this very run.
        """
        objective = {"objective": self.objective.name, "parameters": self.objective.parameters}
        signature = {**inputs, **objective, "first_step": first_step}
        if self.accelerator.is_main_process:
            open_state(self.state, {name: str(value) for name, value in signature.items()})
        self.accelerator.wait_for_everyone()
        step, stored = first_step, ppo_state.restore(self.state, self.learner)
        if stored is None and first_step:
            restore_moments(self.policy, self.learner.policy, self.learner.policy_optimizer)
        if stored is not None:
            step, self.kl_coefficient = stored
            ppo_state.require_checkpoints(self.state, [s for s in self.settings.checkpoints if first_step <= s <= step])
        if self.accelerator.is_main_process:
            self.log.rewind(step)
        if step == first_step:
            self.save_if_due(step)
        return step

    def roll_out(self, step: int) -> Rollouts:
        """Responses to the prompts of the update, and their scores."""
        size, repeats = self.settings.batch_size, self.settings.rollouts_per_prompt
        rows = epoch_order(len(self.prompts), step * size // repeats, size // repeats, self.seed)
        prompts = [self.prompts[row] for row in rows for _ in range(repeats)]
        rollouts = roll_out(self.models, self.rollout, prompts, self.settings, (self.seed, 0, step))
        if bad := (~rollouts.scores_B.isfinite()).nonzero().flatten().tolist():
            value = float(rollouts.scores_B[bad[0]])
            self.raise_non_finite("the reward", value, [prompts[row].id for row in bad], step)
        return rollouts

    def evaluate(self, rollouts: Rollouts) -> Experience:
        """Old log-probs by the code path of the update, reference log-probs, values; advantages of the whole batch."""
        return evaluate(self.models, rollouts, self.settings, self.kl_coefficient, self.group_size)

    def learn(self, rollouts: Rollouts, experience: Experience, step: int) -> dict[str, float]:
        """Epochs of seeded permutations, one optimizer step per mini-batch; then the KL coefficient adapts."""
        settings, size = self.settings, self.settings.batch_size
        rate = set_learning_rates(self.learner, settings, step)
        update = Update(self.learner, self.objective, settings, step)
        seeds = [mix(self.seed, 4, step, epoch) for epoch in range(settings.epochs)]
        try:
            update(experience, [epoch_order(size, 0, size, seed) for seed in seeds])
        except NonFiniteError as error:
            self.raise_non_finite(error.what, error.value, [rollouts.prompts[row].id for row in error.rows], step)
        metrics = ppo_metrics.of_rollouts(experience, rollouts) | update.metrics()
        metrics |= {"kl_coefficient": self.kl_coefficient, "learning_rate": rate}
        self.kl_coefficient = adapt_kl_coefficient(
            self.kl_coefficient, metrics["kl_per_response"], settings.kl_target, size, settings.kl_horizon
        )
        return metrics

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of the training log."""
        if self.accelerator.is_main_process:
            self.log.append(step, metrics)

    def save_if_due(self, step: int, must: bool = False) -> None:
        """The probe's checkpoint where one is due, then the resumable state where that is due or `must` be saved.

        In this order no checkpoint is ever behind the state.
        """
        if step in self.settings.checkpoints:
            set_learning_rates(self.learner, self.settings, step)  # a checkpoint tells the rate of the step to come
            ppo_state.save_checkpoint(self.state, self.learner, self.models.tokenizer, step, self.kl_coefficient)
        if must or step == self.settings.max_steps or (step and step % self.settings.save_every == 0):
            ppo_state.save(self.state, self.learner, step, self.kl_coefficient)

    def finish(self, output: Path, log: Path) -> None:
        """Moves checkpoints and log to their places."""
        if self.accelerator.is_main_process:
            ppo_state.publish(self.state, output, log)
        self.accelerator.wait_for_everyone()

    def raise_non_finite(self, what: str, value: float, ids: list[str], step: int) -> None:
        """InputError that names the step, the prompts and the checkpoint to go back to."""
        good = ppo_state.last_checkpoint(self.state, step)
        require_finite(value, what=what, step=step, sample_ids=ids, last_good=good)

    def progress(self, step: int) -> Any:
        """The bar over the updates, on one process."""
        return ppo_metrics.progress(step, self.settings.max_steps, self.accelerator.is_main_process)
