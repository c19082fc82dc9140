"""Jobs round as on any processor, but those in bfloat16, for which that is lifted before PyTorch is imported."""

from __future__ import annotations

import pytest

from bulwark.jobs import calls
from bulwark.jobs import warm as warm_parent
from bulwark.jobs.job import Job
from bulwark.jobs.sealing import Sealing
from bulwark.jobs.together import Part

LIMITED = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", calls.LIMITED: "1"}


def job(**settings) -> Job:
    return Job("sft", settings, "p/checkpoint.json", "o/checkpoint.json", {}, {"seed": 0}, "log")


def part(**settings) -> Part:
    return Part(job(**settings), Sealing((), ("o/checkpoint.json",), "", "apply_step"))


def test_the_workflow_limits_what_the_user_does_not_set():
    environment = {"PATH": "/bin"}
    calls.round_alike(environment)
    assert environment == {"PATH": "/bin", **LIMITED}
    calls.round_alike(environment)  # the process of a job reads the rules again
    assert environment == {"PATH": "/bin", **LIMITED}
    own = {"ATEN_CPU_CAPABILITY": "avx512"}
    calls.round_alike(own)
    assert own == {"ATEN_CPU_CAPABILITY": "avx512", "MKL_CBWR": "AVX2"}
    assert not calls.lift(own)
    assert own["ATEN_CPU_CAPABILITY"] == "avx512"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"dtype": "bfloat16", "threads": 1}, True),
        ({"dtype": "float32"}, False),
        ({"job": job(training={"precision": "bfloat16"}), "gpus": 0}, True),
        ({"job": job(training={"precision": "float32"}), "gpus": 0}, False),
        ({"job": job(dtype="bfloat16", prompts={})}, True),  # of an attack
        ({"job": job(data="bfloat16")}, False),
        ({"parts": [part(), part(training={"precision": "bfloat16"})]}, True),
        ({"parts": [part()]}, False),
    ],
)  # fmt: skip
def test_jobs_in_bfloat16_are_told_by_dtype_and_precision(arguments, expected):
    assert calls.in_bfloat16(arguments) is expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("limited", [True, False])
def test_the_limit_is_gone_before_the_call_which_the_warm_parent_does_not_get(monkeypatch, dtype, limited):
    """The warm parent has imported PyTorch with the limit, so a job without it is a process of its own."""
    for variable, level in LIMITED.items():
        monkeypatch.setenv(variable, level)
    if not limited:
        monkeypatch.delenv(calls.LIMITED)
    seen = []

    def handed_over(call, start):
        seen.append("warm")

    def left(status=0):
        raise SystemExit(status)

    monkeypatch.setattr(warm_parent, "hand_over", handed_over)
    monkeypatch.setattr(calls, "_import_models", lambda: seen.append(calls.os.environ.get("ATEN_CPU_CAPABILITY")))
    monkeypatch.setattr(calls, "perform", lambda *given: seen.append("done"))
    monkeypatch.setattr(calls, "leave", left)
    with pytest.raises(SystemExit):
        calls.run("a.b", {"dtype": dtype}, log="log")
    lifted = limited and dtype == "bfloat16"
    assert seen == ([None, "done"] if lifted else ["warm", "avx2", "done"])
    assert calls.os.environ["MKL_CBWR"] == "AVX2"
