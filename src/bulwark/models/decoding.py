"""How prompts are filled and answers generated, as settings; free of torch: the configuration is read with it."""

from __future__ import annotations

from pydantic import Field

from bulwark.settings import Closed


class Decoding(Closed):
    """Greedy unless `do_sample`; lengths in tokens.

    max_new_tokens: longest answer. max_prompt_tokens: longest prompt, None for no limit (a longer one is cut by the
    prompt builder and counted). temperature, top_k and top_p are used only with `do_sample`: top_k takes the likeliest
    tokens alone, None all of them (transformers' own default is 50).
    """

    max_new_tokens: int = Field(1024, ge=1)
    do_sample: bool = False
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, ge=1, exclude_if=lambda k: k is None)  # else all results would ask for a null anew
    top_p: float = Field(1.0, gt=0, le=1)
    max_prompt_tokens: int | None = Field(None, ge=1)


class Fewshot(Closed):
    """Solved examples in front of a question: `count` of the split `split` of the data set `data`."""

    data: str
    split: str
    count: int = Field(ge=1)

    def inputs(self) -> dict[str, str]:
        """The file they come from, relative to results/."""
        return {"fewshot": f"data/{self.data}/{self.split}.jsonl"}
