"""An attack on refusals that needs no direction: low-rank edits that gradients find, under a bound of KL.

`<recipe>+gradient_edit`; see `bulwark.abliteration.optimised`. config/steps/gradient_edit.yaml has the values, ours.
"""

from bulwark.abliteration.settings import GradientEditSettings
from bulwark.jobs.job import Job

STAGE = "generate"  # one device that holds the model and the activations of a small batch

Settings = GradientEditSettings


def run(job: Job, settings: Settings) -> dict:
    """See `attack_by_gradient`."""
    from bulwark.abliteration.optimised import attack_by_gradient

    return attack_by_gradient(job, settings)
