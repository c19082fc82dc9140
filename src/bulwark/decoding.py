"""How answers are generated, as settings; free of torch, because the configuration is read with it."""

from __future__ import annotations

from pydantic import Field

from bulwark.settings import Closed


class Decoding(Closed):
    """Greedy unless `do_sample`; lengths in tokens.

    max_new_tokens: longest answer. max_prompt_tokens: longest prompt, None for no limit (a longer one is cut by the
    prompt builder and counted). temperature and top_p are used only with `do_sample`.
    """

    max_new_tokens: int = Field(1024, ge=1)
    do_sample: bool = False
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_prompt_tokens: int | None = Field(None, ge=1)
