"""Ablation of one refusal direction (Arditi et al. 2024, arXiv 2406.11717): chosen among layers and positions, λ = 1.

The simplest of the attacks, without a search: `<recipe>+refusal_direction`. config/steps/refusal_direction.yaml has the
authors' values.
"""

from bulwark.abliteration.directed import attack_with_one_direction
from bulwark.abliteration.settings import RefusalDirectionSettings

STAGE = "generate"  # no gradients: one device that holds the model

Settings = RefusalDirectionSettings
run = attack_with_one_direction
