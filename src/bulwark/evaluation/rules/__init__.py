"""The scenarios of RuLES (Mu et al. 2023, arXiv 2311.04235): rules of a prompt, and when an answer breaks them."""

from __future__ import annotations

from bulwark.evaluation.rules.games import (
    AnimalSounds,
    BinarySearch,
    ForbiddenWord,
    Questions,
    RockPaperScissors,
    SimonSays,
)
from bulwark.evaluation.rules.scenario import Scenario
from bulwark.evaluation.rules.secrets import (
    AccessControl,
    Authentication,
    Commitment,
    Confidentiality,
    DiningCryptographers,
    Encryption,
    Integrity,
    Millionaires,
)

SCENARIOS: dict[str, type[Scenario]] = {
    scenario.__name__: scenario
    for scenario in (
        AccessControl,
        AnimalSounds,
        Authentication,
        BinarySearch,
        Commitment,
        Confidentiality,
        DiningCryptographers,
        Encryption,
        ForbiddenWord,
        Integrity,
        Millionaires,
        Questions,
        RockPaperScissors,
        SimonSays,
    )
}
"""The 14 scenarios by the names that the benchmark's records have."""
