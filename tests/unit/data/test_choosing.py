"""Records that are taken, or left out, by what they say of themselves; SEP's split by probe at full scale."""

import json
import os
from pathlib import Path

import pytest
from score_samples import sep_record

from bulwark.benchmarks import sep
from bulwark.data.choosing import chosen_by, left_by
from bulwark.data.readers import read_split
from bulwark.data.records import Passage
from bulwark.errors import RecordError
from bulwark.settings import read_yaml

DATASETS = Path(__file__).parents[3] / "config" / "datasets"
SHARED = (
    Path(os.environ.get("BULWARK_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data")) / "sep/validation.json"
)
TUNED_ON = "info.appended_task_id"
RECORDS, VALIDATION = 9160, 892  # of SEP


def probed(*probes):
    """SEP's records with these probes."""
    rows = [sep_record(number) for number in range(len(probes))]
    return [
        sep.Record(**{**row, "info": {**row["info"], "appended_task_id": probe}})
        for row, probe in zip(rows, probes, strict=True)
    ]


def probes(records):
    return [record.info.appended_task_id for record in records]


def test_a_field_of_a_field_chooses_records():
    assert probes(chosen_by(probed(3, 4, 3, 5), {TUNED_ON: [3, 5]}, "x")) == [3, 3, 5]
    assert probes(left_by(probed(3, 4, 3, 5), {TUNED_ON: [3, 5]}, "x")) == [4]
    both = {TUNED_ON: [3], "info.is_insistent": [True]}  # sep_record: every second one
    assert probes(chosen_by(probed(3, 3, 4, 4), both, "x")) == [3]
    assert probes(left_by(probed(3, 3, 4, 4), both, "x")) == [4], "what any of the keys names is left out"


def test_meta_is_told_by_whole_keys_also_with_a_point():
    records = [Passage(id=str(n), text="x", meta={"a.b": n, "level": n}) for n in range(3)]
    assert [record.id for record in left_by(records, {"a.b": [1]}, "x")] == ["0", "2"]
    assert [record.id for record in left_by(records, {"level": [0, 2]}, "x")] == ["1"]


@pytest.mark.parametrize(
    ("choose", "key", "values", "reason"),
    [
        (left_by, TUNED_ON, [3, 4], r'every record has "info.appended_task_id" in \[3, 4\], so "without" leaves none'),
        (left_by, TUNED_ON, ["3"], r"in \['3'\], so \"without\" drops none; there are 3, 4\."),
        (left_by, "info.appended_task", [3], r'"without" asks for.*Did you mean "info\.appended_task_id"'),
        (chosen_by, "info.type.name", ["x"], r'"where" asks for "info\.type\.name", which no record has'),
        (chosen_by, TUNED_ON, [7], r'no record has "info.appended_task_id" in \[7\]; there are 3, 4\.'),
    ],
)
def test_a_choice_that_cannot_be_meant_is_an_error(choose, key, values, reason):
    with pytest.raises(RecordError, match=f"^own.json: .*{reason}"):
        choose(probed(3, 4), {key: values}, "own.json")


def described(name):
    """How config/datasets/ chooses the one split of a data set."""
    dataset = read_yaml(DATASETS / f"{name}.yaml")
    (split,) = dataset["splits"]
    return split, {key: dataset[key] for key in ("splits", "where", "without") if key in dataset}


def read(name, path):
    split, options = described(name)
    return read_split(path, split, options.pop("splits"), sep.Record, **options)


def test_seps_split_at_full_scale_is_by_probe_and_has_the_sizes_of_the_authors(tmp_path):
    """As many records as SEP has, of which as many as in the authors' file are of its ten probes, 89 or 90 of each."""
    tuned = read_yaml(DATASETS / "sep_validation.yaml")["where"][TUNED_ON]
    others = [probe for probe in range(100) if probe not in tuned]
    order = [*(tuned[n % 10] for n in range(VALIDATION)), *(others[n % 90] for n in range(RECORDS - VALIDATION))]
    rows = [record.model_dump(mode="json") for record in probed(*order)]
    rows = [rows[n * 7 % RECORDS] for n in range(RECORDS)]  # 7 and 9,160 have no common divisor
    path = tmp_path / "SEP_dataset.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    validation, test = read("sep_validation", path), read("sep_test", path)
    assert (len(validation), len(test)) == (892, 8268)
    ids = [record.id for record in (*validation, *test)]
    assert len(set(ids)) == len(ids) == RECORDS
    assert not set(probes(validation)) & set(probes(test))
    assert {probe % 50 for probe in probes(validation)} == {3, 11, 27, 34, 41}, "each in both of its forms"
    path.write_text(json.dumps(rows[1:]), encoding="utf-8")
    with pytest.raises(RecordError, match="too few for the splits"):  # of one part or the other
        _ = [read(part, path) for part in ("sep_validation", "sep_test")]


def test_the_parts_of_sep_come_from_the_file_of_the_whole():
    whole, part = (read_yaml(DATASETS / f"{name}.yaml")["source"] for name in ("sep", "sep_validation"))
    assert part == whole
    assert read_yaml(DATASETS / "sep_test.yaml")["like"] == "sep"


@pytest.mark.skipif(not SHARED.exists(), reason=f"the real SEP records are not at {SHARED}")
def test_the_authors_validation_file_has_the_probes_of_the_validation_part_and_no_others():
    assert len(read("sep_validation", SHARED)) == VALIDATION
    with pytest.raises(RecordError, match='"without" leaves none'):
        read("sep_test", SHARED)
