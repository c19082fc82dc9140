"""Speed, as ratios within one run: `make bench`, or `python -m bench [name …]`. Never part of the tests.

Absolute times depend on the machine and its neighbours; both sides of a ratio are measured in turn in the same process,
and the median of the rounds' ratios is what is told.
"""
