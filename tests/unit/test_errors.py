"""Errors: which record it was, and what is not shown."""

import subprocess
import sys

import pytest

from bulwark.errors import BulwarkError, RecordError, of_record, without_credentials


def test_an_error_names_its_record_and_other_exceptions_stay_what_they_are():
    def refuse(text, error):
        raise error(f"no {text}")

    with pytest.raises(RecordError, match='The record "r7": no template'):
        of_record("r7", refuse, "template", BulwarkError)
    with pytest.raises(KeyError):
        of_record("r7", refuse, "template", KeyError)
    assert of_record("r7", max, 1, 2) == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:p@ss@host/x", "https://host/x"),
        ("https://user:p/ss@host/x", "https://host/x"),
        ("https://u:p'ss@host/x", "https://host/x"),
        ("https://u:p?ss#@host/x", "https://host/x"),
        ('"https://u:p ss@host/x" is not', '"https://host/x" is not'),
        ("//u:pw@host/x", "//host/x"),
        ("https:/u:pw@host/x", "https:/host/x"),  # as a path
        ("https://h/x#access_token=abc", "https://h/x#access_token=…"),
        ("https://h/x;token=abc", "https://h/x;token=…"),
        ("key sk-SECRETKEY123.", "key …."),
        ("Authorization: Basic dXNlcjpwdw==", "Authorization: Basic …"),
        ("Bearer abcdefgh", "Bearer …"),
    ],
)
def test_credentials_are_not_shown(text, shown):
    assert without_credentials(text) == shown
    assert str(BulwarkError(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://h:8080/a@b",
        "http://[::1]:8000/a@b",
        "https://h/x.md#on-a-cluster",
        'url: "https://a.b/c", mail: "me@x.y"',
        "sorted(rows, key=lambda row: row)",
        "sk-learn, task-specific, hf_hub_download",
    ],
)
def test_what_is_no_credential_is_shown(text):
    assert without_credentials(text) == text


def test_the_credentials_of_the_environment_are_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "my own words")
    monkeypatch.setenv("HF_TOKEN", "tok+/en==abc")
    monkeypatch.setenv("OTHER_TOKEN", "EMPTY")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:pass%2Fword@host/v1")
    said = BulwarkError("key my own words, tok+/en==abc, tok%2B%2Fen%3D%3Dabc, pass/word, EMPTY")
    assert str(said) == "key …, …, …, …, EMPTY"


def test_a_log_shows_no_credentials_whoever_writes_them(tmp_path):
    script = f"""
import logging, warnings
from bulwark.logs import log_to
log_to({str(tmp_path / "job.log")!r})
logging.getLogger("other").warning("%s says %s", "https://me:pass@host/a", "Bearer secret12")
warnings.warn("key sk-SECRETKEY123")
raise ValueError("https://me:pass@host/b, sk-SECRETKEY123")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    for shown in (ended.stderr, (tmp_path / "job.log").read_text()):
        assert "https://host/a says Bearer …" in shown
        assert "ValueError: https://host/b, …" in shown
        assert not any(secret in shown for secret in ("pass@", "secret12", "SECRETKEY"))
