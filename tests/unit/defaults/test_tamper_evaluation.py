"""Data sets and benchmarks of tamper resistance."""

from defaults.reader import Row, check

ROWS: list[Row] = []


def test_every_row_holds():
    check(ROWS)
