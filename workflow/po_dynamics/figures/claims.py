"""What the paper claims about its figures, and what would contradict each claim; as data, for captions and scores.

Every text is a part of a sentence. The keys are stable: tables may name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    """One claim of the paper."""

    figure: str  # its number in version 1 of the paper
    about: str  # the objective whose run the figure shows; the family where it shows any run of it, or all
    reading: str
    contradiction: str


_OTHER_ORDER = "lines in another order, with intervals over trainings and prompts that exclude 0"
CLAIMS = {
    "dpo_total": Claim(
        "1",
        "dpo",
        "G of TOT stays positive, so the targets are stable",
        "a TOT at or below 0 for most of the training",
    ),
    "dpo_signs": Claim(
        "1",
        "dpo",
        "POS leads early with NEG against it, and the two exchange signs later",
        "POS and NEG that keep their signs",
    ),
    "dpo_weights": Claim("1", "dpo", "a larger weight ω does not mean a larger G", "TOP > MID > BOT throughout"),
    "ppo_total": Claim(
        "2",
        "ppo",
        "G of TOT stays near 0, slightly negative and small beside its own components",
        "a TOT that is clearly positive or as large as POS or NEG",
    ),
    "ppo_signs": Claim("2", "ppo", "POS is positive and NEG negative throughout", "changes of sign in POS or NEG"),
    "ppo_weights": Claim(
        "2", "ppo", "TOP and MID are negative, TOP more so, and BOT is near 0", "a BOT as far from 0 as TOP"
    ),
    "dpo_train_signs": Claim(
        "7(b)",
        "dpo",
        "with final responses to the training prompts, POS and NEG do not exchange their roles",
        "an exchange of signs as with held-out prompts",
    ),
    "ppo_advantages": Claim(
        "3",
        "online",
        "MID is positive on average and TOP negative",
        "a TOP that is positive, or a MID that is negative, for most of the training",
    ),
    "dpo_variants": Claim(
        "4",
        "offline",
        "the ablations (no NEG early, no POS late) lie below DPO, and some cDPO above DPO's peak, falling late",
        _OTHER_ORDER,
    ),
    "ppo_ablations": Claim("4", "online", "no TOP lies below PPO and no MID is unstable", _OTHER_ORDER),
    "cppo": Claim(
        "4",
        "online",
        "scaling TOP down does more good, and depends less on λ, than scaling MID",
        _OTHER_ORDER,
    ),
    "hppo": Claim("4", "online", "hPPO lies above PPO", _OTHER_ORDER),
}


def claims_of(figure: str, about: str) -> list[Claim]:
    """The paper's claims about its figure `figure` and this objective or family, in order."""
    return [claim for claim in CLAIMS.values() if (claim.figure, claim.about) == (figure, about)]


def source(figure: str) -> str:
    """Which figure of the paper is reproduced."""
    return f"Reproduces Figure {figure} of version 1 of the paper (arXiv 2512.00778)."


def reading(claims: Sequence[Claim]) -> str:
    """The claims as one sentence."""
    return f"The paper's reading: {'; '.join(claim.reading for claim in claims)}."


def paragraph(figure: str, about: str) -> str:
    """What the paper says about its figure and what would contradict it; empty where it says nothing."""
    claims = claims_of(figure, about)
    if not claims:
        return ""
    by = [f"by {claim.contradiction}" for claim in claims]
    listed = ", and ".join(filter(None, [", ".join(by[:-1]), by[-1]]))
    return f"{source(figure)} {reading(claims)} It would be contradicted {listed}."
