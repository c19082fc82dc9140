"""Numbers as readers see them."""

import pytest

from bulwark.reporting.numbers import error, exact, number, p_value, quantity, with_error
from bulwark.reporting.settings import Column

PERCENT = Column(benchmark="sep", metric="separation", label="SEP score")
OF_NINE = Column(benchmark="traits", metric="expression", label="trait", out_of=9)
PLAIN = Column(benchmark="refusal", metric="kl", label="KL", percent=False, digits=5)


@pytest.mark.parametrize(
    ("value", "places", "shown"),
    [
        (97.04, 1, "97.0"),
        (1e-17, 1, "0.0"),
        (-1e-17, 1, "0.0"),
        (-0.0, 2, "0.00"),
        (-3.25, 1, "−3.2"),
        (0.03, 1, "0.03"),
        (-0.0004, 2, "−0.0004"),
        (2e-7, 5, "2e-07"),
        (0.049, 1, "0.05"),
        (0.05, 1, "0.1"),
        (None, 1, "–"),
        (float("nan"), 1, "–"),
    ],
)
def test_what_is_0_is_0_and_nothing_else_is(value, places, shown):
    assert number(value, places) == shown


def test_a_sign_is_given_where_it_is_asked_for():
    assert [number(value, 1, signed=True) for value in (2, -2, 0)] == ["+2.0", "−2.0", "0.0"]


def test_an_error_of_nothing_is_a_plain_0():
    assert with_error(100.0, 1.1e-17, 1) == "100.0 ± 0"
    assert with_error(99.3, 0.02, 1) == "99.3 ± 0.02"
    assert with_error(99.3, None, 1) == with_error(99.3, float("nan"), 1) == "99.3"
    assert with_error(None, None, 1) == "–"
    assert error(0.6, 1) == "0.6"


def test_only_what_rounding_leaves_of_0_is_made_0():
    assert [exact(value) for value in (1.4e-17, -1e-13, 1e-9, 0.5)] == [0.0, 0.0, 1e-9, 0.5]


def test_a_p_value_has_one_form():
    ps = (1.4e-283, 0.0, 0.0001, 0.00035, 0.0123, 0.35, 1.0, None)
    assert [p_value(p) for p in ps] == [
        "< 0.0001",
        "< 0.0001",
        "= 0.0001",
        "= 0.0003",
        "= 0.012",
        "= 0.35",
        "= 1.00",
        "–",
    ]


def test_a_quantity_has_the_unit_of_its_column():
    shown = [
        (q.value(0.5), q.difference(-0.202), q.margin(0.05))
        for q in (quantity(c, "") for c in (PERCENT, OF_NINE, PLAIN))
    ]
    assert shown == [
        ("50.0 %", "−20.2 points", "5 points"),
        ("4.50 of 9", "−1.82 of 9", "0.45 of 9"),
        ("0.50000", "−0.20200", "0.05"),
    ]
    assert quantity(PERCENT, "").span([0.7, 0.6], of_difference=True) == "[+60.0, +70.0]"
    assert quantity(OF_NINE, "").span([0.1, 0.2], of_difference=False) == "[0.90, 1.80]"
    assert quantity(PERCENT, "").span(None, of_difference=True) == "–"


def test_a_metric_that_no_table_shows_has_its_own_name_and_scale():
    shown = quantity(None, "told_apart")
    assert (shown.label, shown.value(0.91)) == ("told apart", "0.910")
