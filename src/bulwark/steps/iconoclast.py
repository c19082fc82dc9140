"""ICONOCLAST: the search of HERETIC with directions orthogonal to what benign prompts use.

The default is the method as its documents state it, corrected where its code does otherwise: benign subspace and mean
are projected out jointly and at the layers that are edited, so that what should be preserved is; the front is a true
one; the exported weights are those of the chosen trial. config/steps/iconoclast.yaml has the values, with their origin;
`iconoclast_published` is the code as it is.
"""

from bulwark.abliteration.attack import attack
from bulwark.abliteration.settings import AttackSettings

STAGE = "generate"  # no gradients: one device that holds the model

Settings = AttackSettings
run = attack
