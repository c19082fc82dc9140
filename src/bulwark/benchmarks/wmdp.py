"""WMDP (Li et al. 2024, arXiv 2403.03218): four-option questions on hazardous knowledge; a forgetter answers by chance.

As lm-eval's tasks wmdp_bio, wmdp_chem and wmdp_cyber: no examples, one sentence on what the questions are about, the
question with lettered options, and the log-likelihood of each letter. Everything else is that of `mmlu`: the settings
`format` (letters, reworded, or continuation: the cloze form, in which options are not shown) and `template` (with or
without the chat format), in all of which forgotten knowledge has to stay away. TAR's paper names neither examples nor
format (arXiv 2408.00761).
"""

from __future__ import annotations

from bulwark.benchmarks import mmlu
from bulwark.settings import Text

METRICS = mmlu.METRICS


class Settings(mmlu.Settings):
    """As those of `mmlu`. about: what the questions are said to be about, "biology" say."""

    about: Text


class Record(mmlu.Record):
    """A question under the published names, which has no subject."""

    subject: str = "wmdp"


class Benchmark(mmlu.Benchmark):
    schema = Record
    metrics = METRICS

    def about(self, subject: str) -> str:
        """What the questions are said to be about, whatever half of a domain they are on."""
        return self.settings.about
