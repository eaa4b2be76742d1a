"""The paper's claims: as data, and as the sentences under the figures."""

from po_dynamics.figures.claims import CLAIMS, claims_of, paragraph
from po_dynamics.objectives.families import UNCONTROLLED


def test_claims_are_parts_of_sentences_about_runs_that_exist():
    for key, claim in CLAIMS.items():
        assert claim.about in {*UNCONTROLLED, *UNCONTROLLED.values()}, key
        assert claims_of(claim.figure, claim.about).count(claim) == 1, key
        assert not claim.reading.endswith("."), key
        assert not claim.contradiction.endswith("."), key
    assert {claim.figure for claim in CLAIMS.values()} == {"1", "2", "3", "4", "7(b)"}


def test_a_paragraph_says_each_claim_and_what_would_contradict_it():
    assert paragraph("1", "dpo") == (
        "Reproduces Figure 1 of version 1 of the paper (arXiv 2512.00778). The paper's reading: G of TOT stays "
        "positive, so the targets are stable; POS leads early with NEG against it, and the two exchange signs later; "
        "a larger weight ω does not mean a larger G. It would be contradicted by a TOT at or below 0 for most of "
        "the training, by POS and NEG that keep their signs, and by TOP > MID > BOT throughout."
    )
    assert paragraph("7(b)", "dpo").endswith(
        "do not exchange their roles. It would be contradicted by an exchange of signs as with held-out prompts."
    )
    assert paragraph("1", "ipo") == ""
