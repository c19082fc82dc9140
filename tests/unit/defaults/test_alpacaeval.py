"""AlpacaEval and its judge. "The package" is alpaca_eval 0.6.6, "ASIDE's script" that of arXiv 2503.10566."""

from defaults.reader import Row, check

ROWS: list[Row] = [
    *(
        row
        for name, references, annotator, prices, source in (
            (
                "alpacaeval",
                "alpacaeval_davinci",
                "alpaca_eval_gpt4",
                {"prompt": 30.0, "completion": 60.0},
                "AlpacaEval 1.0, which ASIDE reports",
            ),
            (
                "alpacaeval2",
                "alpacaeval_gpt4",
                "weighted_alpaca_eval_gpt4_turbo",
                {"prompt": 10.0, "completion": 30.0},
                "AlpacaEval 2.0 (Dubois et al. 2024, arXiv 2404.04475)",
            ),
        )
        for row in (
            (f"benchmarks/{name}", "settings.scoring.references", {"data": references, "split": "test"}, source),
            (f"benchmarks/{name}", "settings.scoring.judge", {"kind": "alpaca_eval", "scale": 100}, source),
            (f"benchmarks/{name}", "settings.scoring.judge.alpaca_eval.annotator", annotator, source),
            (
                f"benchmarks/{name}",
                "settings.scoring.judge.alpaca_eval.prices",
                prices,
                "the package's prices, per million tokens; no judgement depends on them",
            ),
        )
    ),
    ("benchmarks/alpacaeval", "", {"module": "alpacaeval", "dataset": "alpaca_farm", "split": "test"}, "AlpacaFarm"),
    ("benchmarks/alpacaeval", "cost", 0.05, "ours: a job's expected time, as a share of the 18,320 answers of SEP"),
    ("benchmarks/alpacaeval", "settings.decoding", {"do_sample": False, "max_new_tokens": 1024}, "ASIDE's script"),
    ("benchmarks/alpacaeval2", "like", "alpacaeval", "the same instructions and decoding"),
    ("datasets/alpaca_farm", "splits", {"test": 1.0}, "AlpacaFarm: 805, of which 208 with an input"),
    ("datasets/alpacaeval_davinci", "splits", {"test": 805}, "the package's reference set"),
    ("datasets/alpacaeval_gpt4", "splits", {"test": 805}, "the package's reference set"),
    ("settings benchmarks.alpacaeval", "decoding", {"max_new_tokens": 1024}, "ASIDE's script"),
    ("settings benchmarks.alpacaeval", "scoring", None, "ours: answering needs no judge"),
    ("settings benchmarks.alpacaeval.Scoring", "length_control", None, "ours: the table is on the Hub"),
    ("settings References", "split", "test", "ours: references have one split"),
    ("settings judges.alpaca_eval", "model", None, "ours: the annotator's own"),
    ("settings judges.alpaca_eval", "seed", 0, "the package's PairwiseAnnotator"),
    ("settings judges.alpaca_eval", "prices", None, "ours: nothing unless it is said"),
    ("settings judges.alpaca_eval", "", {"most_cost": None, "requests_per_minute": None}, "ours: no limit unless said"),
    ("settings judges.alpaca_eval", "extra_body", {}, "ours: nothing unless it is said"),
    ("settings judges.alpaca_eval", "concurrency", 8, "ours: the package has 5; no judgement depends on it"),
    (
        "settings judges.alpaca_eval",
        "",
        {"attempts": 6, "timeout": 120.0, "longest_wait": 60.0},
        "ours: no judgement depends on it",
    ),
    (
        "constants bulwark.judges.alpaca_eval",
        "",
        {"MAX_TOKENS": 2048, "TEMPERATURE": 0.7},
        "the package's openai_completions",
    ),
    ("constants bulwark.judges.alpaca_eval", "CHARACTERS_PER_TOKEN", 4, "ours: of English; for the estimate alone"),
]


def test_every_row_holds():
    check(ROWS)
