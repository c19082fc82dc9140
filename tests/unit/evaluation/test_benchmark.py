"""What a benchmark has without writing it."""

from score_samples import answer, write_lines

from bulwark.benchmarks import tasks
from bulwark.evaluation import benchmark
from bulwark.evaluation.score import score_file

TASKS = [{"id": str(n), "instruction": f"Name {n}.", "output": "x"} for n in range(3)]


class Least(benchmark.Benchmark):
    """Nothing but its data, its prompts and its rule."""

    schema = tasks.Record
    metrics = {"short": True}

    def prompts(self, record):
        return {"answer": [], "again": []}

    def score(self, record, responses):
        return {"short": int(all(len(text) < 3 for text in responses.values()))}


def test_prompts_and_a_rule_are_enough(tmp_path):
    said = [answer(str(n), variant, "x" * (n + 1)) for n in range(3) for variant in ("answer", "again")]
    content = score_file(
        Least(tasks.Settings(decoding={})),
        answers=write_lines(tmp_path / "answers.jsonl", said),
        records=write_lines(tmp_path / "records.jsonl", TASKS),
        identity={"benchmark": "least", "model": "m", "recipe": "base", "seed": 0},
        provenance={},
        scores=tmp_path / "scores.json",
    )
    assert content["metrics"]["short"]["value"] == 2 / 3
    assert content["breakdowns"] == {}
    assert content["reported"] == {
        "answers": 6,
        "truncated_prompts": 0,
        "answers_at_length_limit": 0,
        "empty_answers": 0,
        "mean_tokens": 1.0,
    }
    assert content["provenance"]["module"] == "test_benchmark"
