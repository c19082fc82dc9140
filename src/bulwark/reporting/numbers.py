"""Numbers as readers see them, the same in tables, claims and the report. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bulwark.reporting.settings import Column

NONE = "–"
MISSING = "missing"  # what has not been made; NONE is what has been and has no value
_NOTHING = 1e-12  # what summing floats leaves of an exact 0 is smaller


def number(value: float | None, places: int, signed: bool = False) -> str:
    """A number with so many digits after the point; "–" for none.

    The rest that rounding leaves of 0 (1e-17, say) is 0. Any other number that these digits would show as 0 has its
    first significant digit instead: 0.03, 2e-07. signed: a plus before what is above 0.
    """
    if value is None or math.isnan(value):
        return NONE
    if abs(value) < _NOTHING:
        return f"{0:.{places}f}"
    text = f"{abs(value):.{places}f}"
    if float(text) == 0:
        text = f"{abs(value):.1g}"
    return ("−" if value < 0 else "+" if signed else "") + text


def exact(value: float) -> float:
    """The value, or 0 where it is what rounding has left of 0."""
    return 0.0 if abs(value) < _NOTHING else value


def error(value: float | None, places: int) -> str:
    """A standard error as a number; one that is 0 is just that."""
    return "0" if value is not None and abs(value) < _NOTHING else number(value, places)


def with_error(value: float | None, stderr: float | None, places: int, signed: bool = False) -> str:
    """ "97.0 ± 0.6", or the value alone if there is no error; signed: a plus before what is above 0."""
    known = stderr is not None and not math.isnan(stderr)
    return number(value, places, signed) + (
        f" ± {error(stderr, places)}" if known and number(value, places) != NONE else ""
    )


def p_value(p: float | None) -> str:
    """ "= 0.035", or "< 0.0001": the tests resample some thousand times, so that less would claim too much."""
    if p is None or math.isnan(p):
        return NONE
    if p < 0.0001:
        return "< 0.0001"
    return f"= {p:.{4 if p < 0.001 else 3 if p < 0.1 else 2}f}"


@dataclass(frozen=True)
class Quantity:
    """A metric as its column shows it: its label and unit, for values that are stored as fractions."""

    column: Column

    @property
    def label(self) -> str:
        return self.column.label

    def value(self, value: float | None) -> str:
        """ "97.0 %", "1.95 of 9", "0.0123"."""
        return self._in_unit(value, " %", signed=False)

    def difference(self, value: float | None) -> str:
        """A difference of two values, with its sign: "+69.9 points", "−1.82 of 9"."""
        return self._in_unit(value, " points", signed=True)

    def margin(self, value: float) -> str:
        """The size of a difference: "5 points", "0.9 of 9"."""
        return f"{value * self.column.scale:.6g}{self._unit(' points')}"

    def span(self, interval: Sequence[float] | None, of_difference: bool) -> str:
        """ "[+64.1, +75.2]", in the unit of what it is the interval of."""
        if interval is None:
            return NONE
        shown = (number(bound * self.column.scale, self.column.places, of_difference) for bound in sorted(interval))
        return f"[{', '.join(shown)}]"

    def _in_unit(self, value: float | None, percent: str, signed: bool) -> str:
        if value is None:
            return NONE
        return number(value * self.column.scale, self.column.places, signed) + self._unit(percent)

    def _unit(self, percent: str) -> str:
        return f" of {self.column.out_of}" if self.column.out_of else percent if self.column.percent else ""


def quantity(column: Column | None, metric: str) -> Quantity:
    """How a metric is shown: as its column says or, where no table has one, under its own name and as it is stored."""
    return Quantity(column or Column(benchmark="", metric=metric, label=metric.replace("_", " "), percent=False))
