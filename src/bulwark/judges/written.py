"""The value in what a judge wrote, for judges that are read as text. No value rather than a wrong one.

A value is a bare number; else the `score` or `rating` of a JSON object; else the number after `score:` or `rating:`;
else the only number of a reply that begins or ends with it, or says `I give it …`. Thoughts, mentions of the scale and
markup do not count. There is no value in a reply with several different numbers, with a number of another scale (8/10)
or one that can be read in two ways (7,5), beyond the scale, or in which REFUSAL stands.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from bulwark.judges import Judgement

READING = 2  # to be raised with every change of what a text is read as: kept judgements are then made again
SAYS_REFUSAL = "the judge says REFUSAL"
NO_NUMBER = "the judge's answer is no number of the scale"
CUT = "the judge was cut before it answered: raise text_tokens, or turn its thinking off"
SEVERAL = "the judge's answer holds several different numbers"
UNCLEAR = "the judge's number is not the whole of its answer, or can be read in two ways"

# How models mark their thoughts: <think>, <seed:think>, [THINK], ◁think▷, <|START_THINKING|>, <|begin_of_thought|> …
_TAG = re.compile(
    r"[<◁]\|?(?P<name>/?(?:\w+[:.-])?\w*?(?:think|thought|reason|analysis|reflect|scratchpad|monologue)\w*)"
    r"(?:\s[^<>]*)?\|?[>▷]|\[(?P<square>/?(?:think(?:ing)?|thoughts?))\]",
    re.IGNORECASE,
)
# By channels (gpt-oss, also where the special tokens are left out; Gemma), by numbered tokens, in words (Granite).
_START = re.compile(
    r"<\|?channel\|?>\s*(?:analysis|commentary|thoughts?)|\A\s*assistant(?:analysis|commentary)|\A\s*analysis(?=[A-Z])"
    r"|<unused94>|here is my thought process:"
)
_END = re.compile(r"(?:<\|?channel\|?>|assistant)\s*final|<channel\|>|<unused95>|here is my response:", re.IGNORECASE)

_REFUSAL = re.compile(r"(?<![A-Za-z_])REFUSAL(?![A-Za-z_])")
_NEGATED = re.compile(r"(?:\b(?:not|no|never|without|nor|neither)|n't)\s+(?:an?\s+|the\s+)?\Z", re.IGNORECASE)
_DECLINES = re.compile(  # the judge, not the answer that it describes
    r"\bI\s+(?:can(?:no|'|\s+no)t|won't|will\s+not|refuse|decline)\b|\bI(?:'m|\s+am)\s+(?:unable|sorry|not\s+able)\b"
    r"|\A\W*sorry\b",
    re.IGNORECASE,
)
# A number with all that touches it; a letter before it makes it a piece of a name (Q1, score_2).
_WORD = re.compile(r"(?<![A-Za-z_\d])(?<!\d[.,])[+-]?\d(?:[\d.,]*\d)?(?:-?[A-Za-z]\w*)?%?")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_ORDINAL = re.compile(r"\d+-?[A-Za-z]{2,}")  # 5-step, 2nd: a word
_LABEL = re.compile(
    r"(?P<last>\b(?:final|overall)[\s_-]*)?(?:score|rating)\s*(?:\]\s*)?(?:[:=>]|\bis\b)\s*", re.IGNORECASE
)
_GIVES = re.compile(
    r"\b(?:give|gave|rate[sd]?|scor(?:e|ed|es|ing)|rating|say|assign|judge|deserves?|merits?)\b[^.;:!?\n]{0,40}\Z",
    re.IGNORECASE,
)
_AROUND = " \t\n*_`'\"()[]{}<>.,:;!#$="  # what may stand around a number without saying anything


class _Unread(Exception):
    """Why there is no value."""


def from_text(text: str, scale: int, cut: bool = False) -> Judgement:
    """The judgement from a written answer on 0 … scale.

    cut: the reply reached its longest length, so that what it ends with may be a piece of something longer.
    Raises nothing: if there is no value, the judgement has a reason.
    """
    said, thinking = _without_thoughts(unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-"))
    said = said.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").strip()
    said = _without_scale(said, scale)
    if any(not _NEGATED.search(said[: found.start()]) for found in _REFUSAL.finditer(said)):
        return Judgement(None, SAYS_REFUSAL, "text")
    try:
        value = _value(said, scale, cut)
    except _Unread as why:
        if thinking or cut:
            return Judgement(None, CUT, "text", lasting=False)
        refused = str(why) == NO_NUMBER and re.fullmatch(r"\W*refusal\W*", said, re.IGNORECASE)
        return Judgement(None, SAYS_REFUSAL if refused else str(why), "text")
    if not 0 <= value <= scale:
        return Judgement(None, f"the judge's number lies beyond the scale 0 to {scale}", "text")
    return Judgement(value + 0.0, None, "text")  # never -0.0


def _without_thoughts(text: str) -> tuple[str, bool]:
    """The text outside of its thoughts, and whether it ends within one; a chat template may have opened the first."""
    marks = [(found.start(), found.end(), _ends(found)) for found in _TAG.finditer(text)]
    marks += [(found.start(), found.end(), False) for found in _START.finditer(text)]
    marks += [(found.start(), found.end(), True) for found in _END.finditer(text)]
    kept, position, thinking = "", 0, False
    for start, end, ends in sorted(marks):
        if ends and not thinking:
            kept = ""
        elif not ends and not thinking:
            kept += text[position:start]
        thinking, position = not ends, end
    return (kept if thinking else kept + text[position:]).replace("<|message|>", " "), thinking


def _ends(tag: re.Match[str]) -> bool:
    name = (tag["name"] or tag["square"]).lower()
    return name.startswith(("/", "end")) or name.endswith("_end")


def _without_scale(said: str, scale: int) -> str:
    """Without mentions of the scale. Raises nothing: a denominator that is another scale's stays."""
    note = r"(?:\s*\([^()\d]*\))?"
    between = r"\s*(?:-|\N{EN DASH}|\N{EM DASH}|\.{2,3}|,|;|\bto\b|\band\b|\bthrough\b)\s*"
    refusal = r"(?:,?\s*or\s+REFUSAL\b)?"
    return re.sub(
        rf"(?<![\w.,-])(?:0|zero)\b{note}{between}{scale}\b(?![.,]\d){note}{refusal}", "", said, flags=re.IGNORECASE
    )


def _value(said: str, scale: int, cut: bool) -> float:
    """The value, not yet whether it lies on the scale. Raises _Unread."""
    over = r"(?:\s*/|\s*\N{FRACTION SLASH}|\s+out\s+of\b|(?<=\d)\s+of\b|\A\W*out\s+of\b)\s*"
    if any(float(found[1]) != scale for found in re.finditer(rf"{over}(\d+(?:\.\d+)?)", said, re.IGNORECASE)):
        raise _Unread(UNCLEAR)
    said = re.sub(rf"{over}{scale}\b", "", said, flags=re.IGNORECASE)
    said = re.sub(r"(?<=\d)\s*(?:points?\b|分)", "", said, flags=re.IGNORECASE)
    bare = re.sub(r"\A\s*```\w*|```\s*\Z", "", said).strip(_AROUND.replace(".", ""))
    bare = re.sub(r"\A\\boxed\{|\.\Z", "", bare).rstrip(_AROUND)
    if _WORD.fullmatch(bare):
        # The 8 of a reply that was cut may be that of 85; alone, on a scale of one digit, it is what was asked for.
        if cut and said.rstrip().endswith(bare) and not (scale == 9 and bare == said):
            raise _Unread(CUT)
        return _number(bare, scale)
    if "{" in said and (scores := _scores_of_json(said)) is not None:
        return _only([_number(str(score).strip(_AROUND), scale) for score in scores])
    plain = re.sub(r"[*`\"']", "", said)
    if cut and re.search(r"\d[\d.,]*\s*\Z", plain):
        raise _Unread(CUT)
    labelled = [(found["last"], plain[found.end() :].partition("\n")[0]) for found in _LABEL.finditer(plain)]
    labelled = [(last, rest) for last, rest in labelled if _WORD.match(rest)]
    if labelled:
        rests = [rest for last, rest in (labelled[-1:] if labelled[-1][0] else labelled)]
        return _only([number for rest in rests for number in _numbers(rest, scale)])
    return _in_prose(plain, scale)


def _in_prose(plain: str, scale: int) -> float:
    """The only number of a text that begins or ends with it, or gives it. Raises _Unread."""
    if re.match(r"\s*1[.)]\s", plain):  # a list
        plain = re.sub(r"(?m)^\s*\d{1,2}[.)]\s+", "", plain)
    value = _only(_numbers(plain, scale))
    places = [found for found in _WORD.finditer(plain) if not _ORDINAL.fullmatch(found[0])]
    first, last = places[0], places[-1]
    before, after = plain[: first.start()], plain[last.end() :]
    begins = not before.strip(_AROUND) and re.match(
        r"\s*(?:[-.,;:!)\]}\n\N{EN DASH}\N{EM DASH}]|because|since|as\b|(?:out\s+)?of\Z)", after
    )
    ends = not after.strip(_AROUND)
    if _DECLINES.search(plain) or _NEGATED.search(before) or not (begins or ends or _GIVES.search(before)):
        raise _Unread(UNCLEAR)
    return value


def _scores_of_json(said: str) -> list[Any] | None:
    """What stands under `score` or `rating`, at any depth, in the JSON of a text; None if there is none to read."""
    found: list[Any] = []

    def collect(pairs: list[tuple[str, Any]]) -> None:
        found.extend(v for k, v in pairs if re.fullmatch(r"(?:\w*[_ -])?(?:score|rating)", k.strip(), re.IGNORECASE))

    try:
        json.loads(said[said.index("{") : said.rindex("}") + 1], object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return None
    return found


def _numbers(text: str, scale: int) -> list[float]:
    return [_number(found[0], scale) for found in _WORD.finditer(text) if not _ORDINAL.fullmatch(found[0])]


def _number(word: str, scale: int) -> float:
    """Raises _Unread for what is no plain number, such as 1e2 and 7,5."""
    if word.endswith("%") and scale == 100:
        word = word[:-1]
    if not _NUMBER.fullmatch(word):
        raise _Unread(UNCLEAR)
    return float(word)


def _only(values: list[float]) -> float:
    """Raises _Unread if there is none, or more than one."""
    if not values:
        raise _Unread(NO_NUMBER)
    if len(set(values)) > 1:
        raise _Unread(SEVERAL)
    return values[0]
