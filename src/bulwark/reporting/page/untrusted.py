"""Text that models and files wrote, made safe to look at: what cannot be seen, or turns a line round, is named.

That a text cannot become markup is the business of the template, which escapes everything. Here are the characters
that survive escaping: they are shown as ⟨U+202E⟩, say, so that a reader sees what is there.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from markupsafe import Markup

_KEPT = "\n\t"
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidi, zero width, tags), lone surrogates, separators


def visible(text: str) -> str:
    """The text with every character that is not to be seen, but a line feed and a tab, as ⟨U+…⟩."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hidden(c) else c for c in text)


def finalize(value: Any) -> Any:
    """What a template does with every value before it escapes it: markup of its own macros stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def clipped(text: str, most: int) -> tuple[str, int]:
    """The first `most` characters, and how many were cut off behind them."""
    return text[:most], max(0, len(text) - most)


def _hidden(character: str) -> bool:
    return character not in _KEPT and unicodedata.category(character) in _HIDDEN
