"""The probe of offline runs: D are preference pairs, the same at every checkpoint."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from po_dynamics.models.loading import usable_length
from po_dynamics.probe.passes import with_reference
from po_dynamics.probe.run import ProbedRun, open_inputs, probe_all, signature_of
from po_dynamics.probe.samples import Sample, read_pairs


def probe_offline(run: ProbedRun, rewards: Path | None = None) -> None:
    """Writes the tables of every checkpoint, with D from the preference pairs.

    `rewards` is what `score_preferences` wrote for these pairs, where the objective needs rewards.

    Raises:
        InputError: before any long work where a folder, a table or a setting is unusable.
    """
    folders, final = open_inputs(run)
    n, seed = run.settings.samples.train, run.settings.seed
    max_length = usable_length(AutoConfig.from_pretrained(run.reference), run.training["max_length"])
    pairs = read_pairs(run.preferences, n, seed, run.batch_size, max_length, rewards)
    train: list[Sample] = []

    def draw(_: Path) -> list[Sample]:
        if not train:
            train.extend(with_reference(pairs, run.load(run.reference)))  # which nobody holds afterwards
        return train

    signature = signature_of(run, [*folders, *filter(None, [rewards])]) | {"max_length": max_length}
    probe_all(run, folders, final, draw, signature)
