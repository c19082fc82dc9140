"""Adversarial suffixes (GCG, R2D2) and alignment that is meant to survive fine-tuning (Vaccine, Booster, Lisa, SDD)."""

from defaults.reader import Row, check

ROWS: list[Row] = []


def test_every_row_holds():
    check(ROWS)
