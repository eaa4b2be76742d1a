"""The probe of online runs: D are fresh roll-outs of each checkpoint, scored as in training."""

from __future__ import annotations

from pathlib import Path

from po_dynamics.ppo.experience import Sources
from po_dynamics.ppo.probe_rollouts import fresh_rollouts
from po_dynamics.probe.passes import Sampling
from po_dynamics.probe.run import ProbedRun, open_inputs, probe_all, signature_of
from po_dynamics.probe.samples import Sample, rollout_samples


def probe_online(run: ProbedRun, reward: str | Path) -> None:
    """Writes the tables of every checkpoint, with D rolled out there and scored by `reward` and its own critic.

    `reward` is a reward model's folder or "module:function".

    Raises:
        InputError: before any long work where a folder, a table or a setting is unusable.
    """
    folders, final = open_inputs(run)
    samples, seed = run.settings.samples, run.settings.seed
    n = samples.rollouts or samples.train

    def draw(folder: Path) -> list[Sample]:
        sources = Sources(folder, reward, run.reference, run.preferences)
        return rollout_samples(fresh_rollouts(sources, n, run.training, seed, run.objective), run.batch_size)

    models = [*folders, *([reward] if isinstance(reward, Path) else [])]
    signature = signature_of(run, models) | {"training": dict(run.training), "reward": str(reward)}
    sampling = Sampling(run.training.get("temperature", 1.0), run.training.get("top_p"))
    probe_all(run, folders, final, draw, signature, sampling)
