"""Errors: which record it was, and what is not shown."""

import pytest

from bulwark.errors import BulwarkError, RecordError, of_record


def test_an_error_names_its_record_and_other_exceptions_stay_what_they_are():
    def refuse(text, error):
        raise error(f"no {text}")

    with pytest.raises(RecordError, match='The record "r7": no template'):
        of_record("r7", refuse, "template", BulwarkError)
    with pytest.raises(KeyError):
        of_record("r7", refuse, "template", KeyError)
    assert of_record("r7", max, 1, 2) == 2
