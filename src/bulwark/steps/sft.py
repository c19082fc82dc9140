"""Supervised fine-tuning of whatever checkpoint there is: the attack that steering defends against, and its controls.

Unlike `vanilla` it keeps the parent's role embedding, and so can follow any defence. With data that show a trait it is
the fine-tuning of persona vectors (Chen et al., arXiv 2507.21509, Sec. 4) and "unprotected" in Guan et al. (arXiv
2609.10142); without the rows that show it, its control.
"""

from __future__ import annotations

from pydantic import model_validator

from bulwark.steering.settings import AnalysedTraining


class Settings(AnalysedTraining):
    """Data and training; an analysis has to name its vectors."""

    @model_validator(mode="after")
    def _knows_its_vectors(self) -> Settings:
        if self.analysis is not None and self.analysis.vectors is None:
            raise ValueError("analysis.vectors is missing: plain fine-tuning has no trait vectors of its own")
        return self
