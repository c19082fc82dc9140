"""Reading the cost of a plan from Snakemake's dry run."""

import pytest

from bulwark.config.costs import costs

DRY_RUN = """
rule apply_step:
    input: a
    output: b
    resources: tmpdir=<TBD>, gpus_per_node=8, nodes=1, mem_mb=512000, runtime=900
rule apply_step:
    input: c
    resources: gpus_per_node=8, nodes=2, runtime=90
localrule make_table:
    output: t
    resources: tmpdir=<TBD>
"""


def test_gpu_hours_are_expected_hours_times_gpus_of_all_nodes():
    table = costs(DRY_RUN)
    assert table["apply_step"].jobs == 2
    assert table["apply_step"].hours == pytest.approx(11.0)
    assert table["apply_step"].gpu_hours == pytest.approx(80 + 16)
    assert table["make_table"].jobs == 1
    assert table["make_table"].gpu_hours == 0
