"""Unlearning: the baselines that TAR (Tamirisa et al. 2024, arXiv 2408.00761, "the paper") compares with."""

from defaults.reader import Row, check

ROWS: list[Row] = []


def test_every_row_holds():
    check(ROWS)
