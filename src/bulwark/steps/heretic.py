"""HERETIC: search for the ablation of a refusal direction that refuses least at the smallest KL.

p-e-w/heretic, as its development branch has it (config/steps/heretic_1_4.yaml is the release): directions are
differences of means with the mean harmless residual projected out, weights are edited with their row norms kept, and
Optuna chooses direction, strength and layers. As the attack of a red team it measures a defense: `<recipe>+heretic`.
config/steps/heretic.yaml has the authors' values.
"""

from bulwark.abliteration.attack import attack
from bulwark.abliteration.settings import AttackSettings

STAGE = "generate"  # no gradients: one device that holds the model

Settings = AttackSettings
run = attack
