"""Bulwark: published defenses of language models, published attacks on them, measured on every benchmark.

`load` is the library's front door; everything else is reached through its module. Importing the
package imports nothing heavy: the workflow parses its configuration with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bulwark.models.assistant import Assistant

__version__ = "0.1.0"


def load(checkpoint: str, **options) -> Assistant:
    """Open a checkpoint (a folder, or its checkpoint.json) for answering; see `bulwark.models.assistant.load`."""
    from bulwark.models import assistant

    return assistant.load(checkpoint, **options)
