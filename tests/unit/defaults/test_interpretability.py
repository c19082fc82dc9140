"""The analyses of ASIDE (arXiv 2503.10566, Sec. 6). "Their code" is experiments/interp of egozverev/aside (a2de054)."""

from defaults.reader import Row, check

TIME = "ours: a job's expected time, as a share of the 18,320 answers of SEP"
SEED = "their code: every seed is 42"
DECODING = "their code: greedy, prompts of at most 512 tokens"

SEPARABILITY: list[Row] = [
    ("benchmarks/separability", "", {"module": "separability", "dataset": "alpaca_cleaned"}, "Sec. 6.1: Alpaca"),
    ("benchmarks/separability", "split", "validation", "ours: what no model was trained on"),
    ("benchmarks/separability", "cost", 0.02, TIME),
    ("benchmarks/separability", "settings.records", 518, "their code: 1 % of 51,756 records"),
    (
        "benchmarks/separability",
        "settings.injected",
        0.5,
        "their code reads alpaca_adv50percent.json; ours: what it is",
    ),
    ("benchmarks/separability", "settings.held_out", 0.3, "their code: train_test_split, 30 %"),
    ("benchmarks/separability", "settings.split", "prompts", "ours: their code holds out tokens"),
    ("benchmarks/separability", "settings.epochs", 5, "their code: five epochs"),
    ("benchmarks/separability", "settings.seed", 42, SEED),
    ("benchmarks/separability_published", "like", "separability", "ours: a name of its own"),
    ("benchmarks/separability_published", "settings.split", "tokens_as_published", "their code holds out tokens"),
    (
        "settings benchmarks.separability",
        "",
        {"records": 518, "injected": 0.5, "held_out": 0.3},
        "their code, as above",
    ),
    ("settings benchmarks.separability", "", {"epochs": 5, "seed": 42}, "their code, as above"),
    ("settings benchmarks.separability", "split", "prompts", "ours: their code holds out tokens"),
    ("constants bulwark.interpretability.probes", "", {"CHUNK": 64, "TOKENS": 4096}, "ours: what is in memory at once"),
    ("constants bulwark.benchmarks.concept", "", {"TRAINING": 0.7, "VALIDATION": 0.15}, "their code: 70/15/15"),
]

CONCEPT: list[Row] = [
    ("benchmarks/concept", "", {"module": "concept", "dataset": "sep", "split": "test"}, "Sec. 6.2: SEP"),
    ("benchmarks/concept", "cost", 0.04, TIME),
    ("benchmarks/concept", "settings.texts", "alpaca_cleaned", "their code: alpaca_data_cleaned_gpt4.json"),
    ("benchmarks/concept", "settings.split", "train", "their code: the whole file"),
    ("benchmarks/concept", "settings.count", 2000, "their code: a tenth of the texts, about 4,000, two of each record"),
    ("benchmarks/concept", "settings.layers", [15], "their code: of Llama-3.1-8B, Llama-2-7B and Mistral-7B"),
    ("benchmarks/concept on llama2-13b", "settings.layers", [18], "their code"),
    ("benchmarks/concept on qwen2.5-7b", "settings.layers", [14], "their code"),
    ("benchmarks/concept on qwen3-8b", "settings.layers", [17], "ours: as deep as 15 of 32"),
    ("benchmarks/concept", "settings.records", 1000, "Sec. 6.2: the first 1,000 records; ours: drawn"),
    ("benchmarks/concept", "settings.decoding.do_sample", False, DECODING),
    ("benchmarks/concept", "settings.decoding.max_new_tokens", 512, "their code, 2_4: answers of 512 tokens"),
    ("benchmarks/concept", "settings.decoding.max_prompt_tokens", 512, DECODING),
    ("benchmarks/concept", "settings.seed", 42, SEED),
    ("settings benchmarks.concept", "", {"split": "train", "count": 2000, "records": 1000}, "their code, as above"),
    ("settings benchmarks.concept", "strength", 1.0, "ours: scikit-learn's own; their code has no penalty"),
    ("settings benchmarks.concept", "", {"decoding": None, "seed": 42}, "ours: answers only where they are asked for"),
]

OTHERS: list[Row] = [
    ("benchmarks/intervention", "", {"module": "intervention", "dataset": "sep", "split": "test"}, "Sec. 6.3: SEP"),
    ("benchmarks/intervention", "cost", 0.16, TIME),
    ("benchmarks/intervention", "settings.decoding.do_sample", False, DECODING),
    ("benchmarks/intervention", "settings.decoding.max_new_tokens", 1024, "their code, 8: 1,024 new tokens"),
    ("benchmarks/intervention", "settings.decoding.max_prompt_tokens", 512, DECODING),
    ("benchmarks/intervention", "", {"settings": {"records": 1000}}, "Sec. 6.3: 1,000 records"),
    ("benchmarks/intervention", "settings.seed", 42, SEED),
    ("settings benchmarks.intervention", "", {"records": 1000, "seed": 42}, "their code, as above"),
    ("benchmarks/rotation", "", {"module": "rotation", "dataset": "sep", "split": "test"}, "Sec. 6.4: SEP"),
    ("benchmarks/rotation", "cost", 0.01, TIME),
    ("benchmarks/rotation", "settings", {"records": 100, "of": "vanilla"}, "Sec. 6.4: 100 records, against vanilla"),
    ("benchmarks/rotation", "settings.seed", 42, SEED),
    ("settings benchmarks.rotation", "", {"records": 100, "of": "vanilla", "seed": 42}, "their code, as above"),
    ("benchmarks/attention", "", {"module": "attention", "dataset": "sep", "split": "test"}, "their notebook 5: SEP"),
    ("benchmarks/attention", "cost", 0.01, TIME),
    (
        "benchmarks/attention",
        "settings",
        {"records": 100, "seed": 42},
        "ours: as Sec. 6.4; theirs are 61 of its own kind",
    ),
    ("settings benchmarks.attention", "", {"records": 100, "seed": 42}, "ours, as above"),
    ("benchmarks/embedding_metrics", "", {"module": "embedding_metrics", "dataset": "sep"}, "ours: the words of SEP"),
    ("benchmarks/embedding_metrics", "", {"split": "test", "cost": 0.01}, TIME),
    ("benchmarks/embedding_metrics", "settings", {"records": 1000, "of": "base"}, "ours: as many records as elsewhere"),
    ("benchmarks/embedding_metrics", "settings.seed", 42, SEED),
    ("settings benchmarks.embedding_metrics", "", {"records": 1000, "of": "base", "seed": 42}, "ours, as above"),
    (
        "constants bulwark.interpretability.distances",
        "PERCENTILES",
        [5, 10, 50, 90, 95],
        "their code, embd_metrics.py",
    ),
]

ROWS = SEPARABILITY + CONCEPT + OTHERS


def test_interpretability():
    check(ROWS)
