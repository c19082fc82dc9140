"""The judge behind a chat endpoint: values from log-probabilities or text, failures, retries, the cache."""

import math
import os

import pytest
from chat_endpoint import Endpoint, choice, serving

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.judges import Judgement, JudgeSettings, Request, judge
from bulwark.judges.openai import from_logprobs

LOGPROBS_REFUSED = {"error": {"message": "This model does not support logprobs.", "type": "invalid", "code": None}}
OVERLOADED = {"error": {"message": "overloaded", "type": "server", "code": None}}


def settings(scale=100, **own):
    return JudgeSettings(kind="openai", scale=scale, openai={"model": "m", "longest_wait": 0.01, **own})


def asked(count=1, criterion="evil", **fields):
    return [
        Request(f"r{number}", f"Question {number}?", "Hm {question}.", criterion, **fields) for number in range(count)
    ]


def logs(probabilities):
    return {token: math.log(share) for token, share in probabilities.items()}


# REFUSAL → None, mass < 0.25 → None, weighted mean else.
@pytest.mark.parametrize(
    ("scale", "candidates", "value"),
    [
        (100, {"80": 0.5, "90": 0.3, "I": 0.2}, (80 * 0.5 + 90 * 0.3) / 0.8),
        (100, {"80": 0.2, " 80": 0.1, "REF": 0.6}, 80.0),  # on 0 … 100 only the mass decides
        (100, {"80": 0.24, "I": 0.7}, None),
        (100, {"101": 0.9, "5": 0.05}, None),  # beyond the scale is no number of it
        (100, {"²": 0.9, "١": 0.1}, None),  # digits, but not those
        (9, {"7": 0.6, "3": 0.2, "10": 0.2}, (7 * 0.6 + 3 * 0.2) / 0.8),
        (9, {"REFUSAL": 0.4, "0": 0.3, "1": 0.3}, None),
        (9, {"REF": 0.2, "R": 0.15, "0": 0.3, "1": 0.3}, None),  # its pieces count together
        (9, {"REF": 0.29, "0": 0.3, "1": 0.3}, 0.5),
        (9, {"4": 0.2, "I": 0.8}, None),
    ],
)
def test_values_from_log_probabilities(scale, candidates, value):
    found = from_logprobs(logs(candidates), scale)
    assert found.value == (None if value is None else pytest.approx(value))
    assert (found.reason is None) == (value is not None)


def test_a_judge_that_is_cut_while_it_thinks_is_asked_again_next_time(monkeypatch, tmp_path):
    cache = tmp_path / "cache.jsonl"
    thought = choice("<think>\nOkay, I have to rate this on a scale of 0 to 9, where", finish="length")
    replies = iter([(200, thought), (200, choice("<think>easy</think>7")), (200, choice("6"))])
    with serving(Endpoint(lambda body: next(replies)), monkeypatch) as endpoint:
        first = judge(asked(2), settings(9, answers="text", concurrency=1), cache)
        again = judge(asked(2), settings(9, answers="text", concurrency=1), cache)
    assert {found.value for found in first} == {None, 7.0}
    assert any("cut before it answered" in (found.reason or "") for found in first)
    assert {found.value for found in again} == {6.0, 7.0}
    assert len(endpoint.bodies) == 3


def test_a_page_in_place_of_a_completion_names_the_address(monkeypatch):
    page = "<!DOCTYPE html><html><body>Welcome to the gateway</body></html>"
    said = r"OPENAI_BASE_URL, http://127.*does not answer like a chat endpoint"
    for content in (page, {"detail": "Not Found"}, ["no completion"]):
        endpoint = Endpoint(lambda body, content=content: (200, content))
        with serving(endpoint, monkeypatch), pytest.raises(BulwarkError, match=said):
            judge(asked(), settings(9))


def test_the_address_is_shown_without_its_credentials(monkeypatch):
    with serving(Endpoint(lambda body: (200, "page")), monkeypatch):
        monkeypatch.setenv("OPENAI_BASE_URL", os.environ["OPENAI_BASE_URL"].replace("http://", "http://me:secret@"))
        with pytest.raises(BulwarkError, match="does not answer like a chat endpoint") as raised:
            judge(asked(), settings(9))
    assert "secret" not in str(raised.value)


def test_a_candidate_without_a_log_probability_has_no_mass(monkeypatch):
    reply = choice("7", {"7": 0.99, "9": 0.01})
    reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"][1]["logprob"] = None
    with serving(Endpoint(lambda body: (200, reply)), monkeypatch):
        assert judge(asked(), settings(9)) == [Judgement(pytest.approx(7.0), None, "logprobs")]


def test_an_error_in_place_of_choices_is_the_reason(monkeypatch):
    broken = {"error": {"message": "upstream overloaded", "code": 502}}
    replies = iter([(200, broken)] * 2 + [(200, choice("7", {"7": 1.0}))] + [(200, broken)] * 9)
    with serving(Endpoint(lambda body: next(replies)), monkeypatch) as endpoint:
        found = judge(asked(2), settings(9, attempts=3, concurrency=1))
    assert [judgement.value for judgement in found] == [7.0, None]
    assert (found[1].reason, found[1].lasting) == ("the endpoint says: upstream overloaded", False)
    assert len(endpoint.bodies) == 6  # code 502 is worth asking again
    told = Endpoint(lambda body: (200, {"error": "no such lora"}))
    with serving(told, monkeypatch), pytest.raises(BulwarkError, match="no such lora"):
        judge(asked(), settings(9))


@pytest.mark.parametrize("named", [True, False], ids=["param", "text"])
def test_parameters_that_an_endpoint_refuses_are_sent_otherwise_from_then_on(monkeypatch, caplog, named):
    def respond(body):
        for name, said in (
            ("logprobs", "logprobs are not supported with this model"),
            ("max_tokens", "this model takes max_completion_tokens, not max_tokens"),
            ("temperature", "temperature 0 is not supported with this model"),
            ("seed", "extra fields not permitted: seed"),
        ):
            if name in body:
                error = {"message": said, "type": "invalid", "param": name if named else None, "code": "unsupported"}
                return (422 if name == "seed" else 400), {"error": error}
        return 200, choice("7")

    with serving(Endpoint(respond), monkeypatch) as endpoint:
        found = judge(asked(4), settings(9, concurrency=1))
    assert [judgement.value for judgement in found] == [7.0] * 4
    assert set(endpoint.bodies[-1]) == {"messages", "model", "max_completion_tokens"}
    assert len(endpoint.bodies) == 4 + 4
    assert caplog.text.count('"max_tokens": sent as "max_completion_tokens"') == 1
    assert caplog.text.count('"temperature": sent without it. Its answers may differ') == 1


def test_one_token_at_temperature_zero_with_twenty_candidates(monkeypatch):
    with serving(Endpoint(lambda body: (200, choice("7", {"7": 0.75, "8": 0.25}))), monkeypatch) as endpoint:
        found = judge(asked(), settings(9, extra_body={"chat_template_kwargs": {"enable_thinking": False}}))
    assert found == [Judgement(pytest.approx(7.25), None, "logprobs")]
    body = endpoint.bodies[0]
    assert (body["max_tokens"], body["temperature"], body["top_logprobs"], body["seed"]) == (1, 0, 20, 0)
    assert body["logprobs"] is True
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert endpoint.keys == {"Bearer test-key"}


def test_the_prompt_holds_material_rubric_and_scale(monkeypatch):
    with serving(Endpoint(lambda body: (200, choice("1", {"1": 1.0}))), monkeypatch) as endpoint:
        judge(asked(), settings(9))
        judge(asked(rubric="Rate {answer} to {question}: {top}"), settings(100))
    first, second = (body["messages"][0]["content"] for body in endpoint.bodies)
    assert "Question 0?" in first
    assert "from 0 to 9, or REFUSAL, and nothing else" in first
    assert "Hm {question}." in first  # braces inside an answer are left alone
    assert second == "Rate Hm {question}. to Question 0?: 100"


@pytest.mark.parametrize("how", ["error", "left out"])
def test_without_log_probabilities_text_is_read_and_asked_for_once_only(monkeypatch, how, caplog):
    def respond(body):
        if "logprobs" in body:
            return (400, LOGPROBS_REFUSED) if how == "error" else (200, choice("6"))
        return 200, choice("I say 6.")

    with serving(Endpoint(respond), monkeypatch) as endpoint:
        found = judge(asked(5), settings(9, concurrency=1))
    assert found == [Judgement(6.0, None, "text")] * 5
    assert sum("logprobs" in body for body in endpoint.bodies) == 1
    assert sum("no log-probabilities" in record.message for record in caplog.records) == 1


def test_log_probabilities_can_be_demanded(monkeypatch):
    with serving(Endpoint(lambda body: (200, choice("6"))), monkeypatch), pytest.raises(BulwarkError, match="demands"):
        judge(asked(), settings(answers="logprobs"))


def test_a_judge_that_writes_single_digits_is_read_as_text_where_they_would_mislead(monkeypatch, caplog):
    """The first token of its 85 is 8; on 0 … 9 there is nothing to mistake."""

    def respond(body):
        return 200, choice("8", {"8": 0.9, "9": 0.1}) if "logprobs" in body else choice("85")

    with serving(Endpoint(respond, number="5"), monkeypatch):
        assert judge(asked(3), settings(100)) == [Judgement(85.0, None, "text")] * 3
        assert judge(asked(), settings(9)) == [Judgement(pytest.approx(8.1), None, "logprobs")]
        with pytest.raises(BulwarkError, match="Take scale 9"):
            judge(asked(), settings(100, answers="logprobs"))
    assert sum("values are read from text" in record.message for record in caplog.records) == 1


def test_a_content_filter_is_a_failed_judgement_and_does_not_end_log_probabilities(monkeypatch):
    def respond(body):
        if "Question 0" in body["messages"][0]["content"]:
            return 200, choice("", finish="content_filter")
        return 200, choice("50", {"50": 1.0})

    with serving(Endpoint(respond), monkeypatch):
        found = judge(asked(3), settings(concurrency=1))
    assert found[0] == Judgement(None, "the endpoint gave no text (content_filter)", None, lasting=False)
    assert [one.method for one in found[1:]] == ["logprobs"] * 2


def test_dropped_requests_are_tried_again(monkeypatch):
    failures = iter([(500, OVERLOADED), (429, OVERLOADED, {"Retry-After": "0"})])
    with serving(Endpoint(lambda body: next(failures, (200, choice("3", {"3": 1.0})))), monkeypatch) as endpoint:
        assert judge(asked(), settings())[0].value == 3.0
    assert len(endpoint.bodies) == 3


def test_what_stays_dropped_is_none_with_its_reason_and_is_asked_again_next_time(monkeypatch, tmp_path):
    def broken(body):
        lost = "Question 1" in body["messages"][0]["content"]
        return (503, OVERLOADED) if lost else (200, choice("3", {"3": 1.0}))

    cache = tmp_path / "cache.jsonl"
    with serving(Endpoint(broken), monkeypatch) as endpoint:
        found = judge(asked(3), settings(attempts=2), cache)
    assert [one.value for one in found] == [3.0, None, 3.0]
    assert found[1].reason == "the request failed: InternalServerError (HTTP 503)"
    assert len(endpoint.bodies) == 4
    with serving(Endpoint(lambda body: (200, choice("9", {"9": 1.0}))), monkeypatch) as endpoint:
        assert [one.value for one in judge(asked(3), settings(), cache)] == [3.0, 9.0, 3.0]
    assert len(endpoint.bodies) == 1


def test_nothing_is_paid_twice(monkeypatch, tmp_path):
    cache = tmp_path / "cache.jsonl"
    with serving(Endpoint(lambda body: (200, choice("3", {"3": 1.0}))), monkeypatch) as endpoint:
        judge([*asked(2), Request("again", "Question 0?", "Hm {question}.", "evil")], settings(), cache)
        assert len(endpoint.bodies) == 2  # equal requests are one
        judge(asked(3), settings(concurrency=3, attempts=9), cache)
        assert len(endpoint.bodies) == 3  # pace and patience decide nothing
        judge(asked(3), settings(9), cache)
        assert len(endpoint.bodies) == 6  # the scale does
    assert "test-key" not in cache.read_text()


def test_a_killed_job_keeps_its_judgements(monkeypatch, tmp_path):
    cache = tmp_path / "cache.jsonl"
    with serving(Endpoint(lambda body: (200, choice("3", {"3": 1.0}))), monkeypatch) as endpoint:
        judge(asked(2), settings(), cache)
        whole = cache.read_bytes()
        cache.write_bytes(whole[:-9])  # the last line was being written
        assert [one.value for one in judge(asked(2), settings(), cache)] == [3.0, 3.0]
        assert len(endpoint.bodies) == 3
    assert sorted(cache.read_bytes().split(b"\n")) == sorted(whole.split(b"\n"))


def test_requests_run_at_once_up_to_the_limit(monkeypatch):
    with serving(Endpoint(lambda body: (200, choice("3", {"3": 1.0})), delay=0.05), monkeypatch) as endpoint:
        judge(asked(12), settings(concurrency=4))
    assert 2 <= endpoint.most <= 4


def test_a_refused_key_stops_everything(monkeypatch):
    refused = {"error": {"message": "bad key", "type": "auth", "code": "invalid_api_key"}}
    with (
        serving(Endpoint(lambda body: (401, refused)), monkeypatch) as endpoint,
        pytest.raises(BulwarkError, match="OPENAI_API_KEY"),
    ):
        judge(asked(50), settings(concurrency=2))
    assert len(endpoint.bodies) < 10


def test_an_endpoint_that_judges_nothing_is_an_error(monkeypatch):
    with (
        serving(Endpoint(lambda body: (503, OVERLOADED)), monkeypatch),
        pytest.raises(BulwarkError, match=r"judged none of 2 answers.*HTTP 503"),
    ):
        judge(asked(2), settings(attempts=1))


def test_without_a_key_nothing_is_asked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        judge(asked(), settings())


def test_a_criterion_without_rubric_is_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with pytest.raises(ConfigurationError, match=r'"evl".*Did you mean "evil"'):
        judge(asked(criterion="evl"), settings())


def changed(**fields):
    """A completion with other fields in its choice; content, refusal: of its message; logprob, token: of its first."""
    reply = choice("7", {"7": 1.0})
    one = reply["choices"][0]
    first = one["logprobs"]["content"][0]["top_logprobs"][0]
    for name, value in fields.items():
        of = one["message"] if name in ("content", "refusal") else first if name in ("logprob", "token") else one
        of[name] = value
    return reply


@pytest.mark.parametrize(
    "misshapen",
    [
        {"choices": [{"index": 0}]},
        changed(message=None),
        changed(logprobs={"content": [{"token": None, "logprob": -0.1, "top_logprobs": []}]}),
        changed(logprobs=["7"]),
        changed(token=None),
        changed(logprob=math.nan),
        changed(logprob=1000.0),
        changed(logprob="many"),
        changed(content={"text": "7"}),
        changed(content=[7]),
    ],
    ids=lambda reply: str(reply["choices"][0])[-60:],
)
def test_an_answer_of_another_shape_is_asked_again_and_then_a_failed_judgement(monkeypatch, misshapen):
    replies = iter([misshapen, *[choice("7", {"7": 1.0})] * 2, *[misshapen] * 2])
    with serving(Endpoint(lambda body: (200, next(replies))), monkeypatch) as endpoint:
        found = judge(asked(3), settings(9, attempts=2, concurrency=1))
    assert [judgement.value for judgement in found] == [7.0, 7.0, None]
    assert found[2].reason.startswith("an answer of another shape (")
    assert not found[2].lasting
    assert len(endpoint.bodies) == 5


@pytest.mark.parametrize("body", [b"", b'{"choices": ['], ids=["empty", "torn"])
def test_an_answer_that_is_no_json_is_a_failed_judgement(monkeypatch, body):
    with serving(Endpoint(lambda sent: (200, body)), monkeypatch), pytest.raises(BulwarkError, match="another shape"):
        judge(asked(), settings(9, attempts=1))


@pytest.mark.parametrize("content", [[{"type": "text", "text": "7"}], ["7"], 7])
def test_pieces_of_text_and_numbers_are_read_as_text(monkeypatch, content):
    with serving(Endpoint(lambda body: (200, changed(content=content, logprobs=None))), monkeypatch):
        assert judge(asked(), settings(9, answers="text")) == [Judgement(7.0, None, "text")]


def test_a_log_probability_of_minus_infinity_has_no_mass_and_rounding_may_lie_above_zero(monkeypatch):
    reply = choice("7", {"7": 1.0, "8": 0.5})
    first, second = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    first["logprob"], second["logprob"] = 1e-4, -math.inf
    with serving(Endpoint(lambda body: (200, reply)), monkeypatch):
        assert judge(asked(), settings(9)) == [Judgement(7.0, None, "logprobs")]


def test_a_judge_that_refuses_by_a_field_of_its_own_is_said_to(monkeypatch):
    reply = changed(content=None, refusal="I cannot", logprobs=None)
    with serving(Endpoint(lambda body: (200, reply)), monkeypatch), pytest.raises(BulwarkError, match="judge refuses"):
        judge(asked(), settings(9, answers="text"))


def test_a_failure_that_is_told_under_detail_is_understood_and_shown_without_credentials(monkeypatch, caplog):
    def respond(body):
        if "seed" in body:
            return 422, {"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}]}
        said = "no such lora, bad key test-key"
        return (400, {"detail": said}) if "Question 0" in body["messages"][0]["content"] else (200, choice("7"))

    with serving(Endpoint(respond), monkeypatch):
        found = judge(asked(2), settings(9, answers="text", concurrency=1))
    assert [judgement.value for judgement in found] == [None, 7.0]
    assert 'does not take "seed"' in caplog.text
    assert "no such lora, bad key …" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_BASE_URL", "http://u:PA/SSWD@h/v1"),
        ("OPENAI_BASE_URL", "http://u:PASSWD@h:port/v1"),
        ("OPENAI_BASE_URL", "u:PASSWD@localhost:8000/v1"),
        ("OPENAI_BASE_URL", "localhost:8000/v1"),
        ("OPENAI_BASE_URL", "http://local host/v1"),
        ("OPENAI_API_KEY", "sk-SÉCRET"),
        ("OPENAI_API_KEY", "sk-SEC\nRET"),
        ("OPENAI_ORG_ID", "Ü"),
    ],
)
def test_what_nothing_can_be_sent_with_is_told_before_the_first_request(monkeypatch, name, value):
    with serving(Endpoint(lambda body: (200, choice("7"))), monkeypatch) as endpoint:
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=f"^{name} ") as raised:
            judge(asked(), settings(9))
    assert not endpoint.bodies
    assert not any(piece in str(raised.value) for piece in ("PA", "SSWD", "sk-"))
