"""Data sets and benchmarks of tamper resistance."""

from defaults.reader import Row, check

TIME = "ours: a job's expected time, as a share of the 18,320 answers of SEP"
VARIANT = "ours: what this is a variant of"

CLOZE: list[Row] = [
    ("benchmarks/cloze", "", {"module": "cloze", "dataset": "wmdp_bio_cloze", "split": "test"}, "ours: WMDP, open"),
    ("benchmarks/cloze", "cost", 0.1, TIME),
    (
        "benchmarks/cloze",
        "settings.decoding",
        {"do_sample": False, "max_new_tokens": 64},
        "ours: an option is a phrase",
    ),
    *(
        row
        for name, split in (("cloze_attacked", "first_half"), ("cloze_retain", "retain"))
        for row in (
            (f"benchmarks/{name}", "like", "cloze", VARIANT),
            (f"benchmarks/{name}", "", {"dataset": "miniature_cloze", "split": split}, "ours: of the miniature alone"),
        )
    ),
    ("settings benchmarks.cloze", "decoding", {"max_new_tokens": 64}, "ours: an option is a phrase"),
]

ROWS = CLOZE


def test_every_row_holds():
    check(ROWS)
