"""The evaluation: greedy responses of every checkpoint, and a judge that compares them with the SFT model's."""

from __future__ import annotations

from po_dynamics.settings.base import Positive, Settings


class Responses(Settings):
    """Greedy responses: of D′, and to the evaluation prompts."""

    max_new_tokens: Positive = 512
    """tokens of a response, also of D′"""


class Evaluation(Responses):
    """Greedy responses to the evaluation prompts, and their judge."""

    judge: str
    """a directory of workflow/judges/, or the name of an annotator that alpaca-eval ships"""
    checkpoints_per_job: Positive | None = None
    """null: all checkpoints of a run in one job"""
