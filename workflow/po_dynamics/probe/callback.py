"""The probe while a model trains: a `transformers` callback that logs G of every component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from po_dynamics.dynamics.alignment import Probe, dynamics
from po_dynamics.errors import InputError
from po_dynamics.objectives.declaration import Objective
from po_dynamics.probe.passes import Options, probe
from po_dynamics.probe.samples import Sample


class ProbeCallback(TrainerCallback):
    """Probes a small sample at the start and every `every` steps, and logs through the trainer, to any tracker.

        trainer.add_callback(ProbeCallback(trainer, train, final, bind("dpo", {"beta": 0.1}), every=50))

    Logged: `probe/<component>/G`, `…/G_low`, `…/G_high`, `probe/TOT/cosine`, `…/grad_norm`. `train` are pairs with
    reference log-probs (`with_reference`), `final` any responses whose alignment is asked for: those of an earlier run,
    or of a better model. Weights, gradients, optimizer and random numbers stay as they are, so that training goes
    on as without the callback; attention is eager during the probe only.
    """

    def __init__(
        self,
        trainer: Trainer,
        train: Sequence[Sample],
        final: Sequence[Sample],
        objective: Objective,
        every: int = 100,
    ) -> None:
        if every < 1:
            raise InputError(f"probe callback: every is {every}, but must be at least 1 step")
        self.trainer, self.train, self.final = trainer, train, final
        self.objective, self.every = objective, every

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._probe(kwargs["model"], state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._probe(kwargs["model"], state)

    def _probe(self, model: Any, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        self.trainer.log(self.measure(getattr(model, "module", model), state.global_step))

    def measure(self, model: PreTrainedModel, step: int) -> dict[str, float]:
        """What is logged at a step."""
        attention = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            label = f"probe step {step}"
            tables = probe(model, self.train, self.final, self.objective, step, Options(norms=0), label=label)
        finally:
            model.set_attn_implementation(attention)
        rows = dynamics(Probe({}, tables)).query("segment == 'all' and not filtered")
        whole = rows[rows["component"] == "TOT"].iloc[0]
        logs = {f"probe/TOT/{key}": float(whole[key]) for key in ("cosine", "grad_norm")}
        for key in ("G", "G_low", "G_high"):
            logs |= {f"probe/{name}/{key}": float(g) for name, g in zip(rows["component"], rows[key], strict=True)}
        return logs
