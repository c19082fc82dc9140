"""How a model is asked where its refusals are measured or taken away: the same in searches, benchmarks and tables."""

from __future__ import annotations

from bulwark.settings import Closed


class Asking(Closed):
    """system_prompt: a system turn before each request; None for none. response_prefix: text with which every response
    begins already (an empty chain of thought, say).

    config/models says them, of each model. Settings that inherit them get the model's, and may not say others: what an
    attack searched for would not be what is reported.
    """

    system_prompt: str | None = None
    response_prefix: str = ""


def asked_in(cls: type[Closed]) -> tuple[str, ...] | None:
    """Where settings of this class hold how the model is asked, as a path of keys; None if they do not."""
    if issubclass(cls, Asking):
        return ()
    inside = (
        name
        for name, field in cls.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Asking)
    )
    name = next(inside, None)
    return None if name is None else (name,)
