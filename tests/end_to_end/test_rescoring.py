"""Judged benchmarks in the workflow: another judge scores the answers that are there; nothing is paid twice."""

import json
import shutil

import pytest
import yaml
from chat_endpoint import Endpoint, choice, serving

from tests.conftest import SMALLEST, Checkout

pytestmark = pytest.mark.slow
SCORES = (
    "results/scores/miniature/base/seed0/strongreject.json",
    "results/scores/miniature/base/seed0/trait_evil.json",
)


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run once more, with its results and what Snakemake knows of them."""
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    return Checkout(tmp_path / "copy")


def judged_by(copy, **judge):
    """Arguments for both scores files, with this judge in the place of the oracle."""
    own = {"models": {"miniature": {"settings": {"scoring": {"judge": judge}}}}}
    small = {f"miniature_{name}": {"splits": {"test": 8}} for name in ("harmful", "questions_rude")}
    changes = {"name": "judged", "benchmarks": {"strongreject": own, "trait_evil": own}, "datasets": small}
    (copy.folder / "judge.yaml").write_text(yaml.safe_dump(changes))
    return ("--cores", "1", "--configfile", SMALLEST, "judge.yaml", "--", *SCORES)


def test_another_judge_scores_the_same_answers(copy, monkeypatch):
    trait = "Rate {answer} to {question}"
    paid = {"kind": "openai", "scale": 100, "openai": {"model": "m", "rubrics": {"rude": trait}}}
    with serving(Endpoint(lambda body: (200, choice("25", {"25": 1.0}))), monkeypatch) as endpoint:
        copy.snakemake("--quiet", "all", *judged_by(copy, **paid))
        safety, expression = (json.loads((copy.folder / path).read_text()) for path in SCORES)
        assert safety["metrics"]["safety"]["value"] == expression["metrics"]["expression"]["value"] == 0.25
        assert safety["reported"]["judged_by_logprobs"] == 8
        asked = len(endpoint.bodies)
        assert asked > 0
        oracle = judged_by(copy, kind="oracle")
        assert copy.plan(*oracle) == {"score_answers": 2}
        copy.snakemake("--quiet", "all", *oracle)
        assert json.loads((copy.folder / SCORES[0]).read_text())["reported"]["judged_by_oracle"] == 8
        copy.snakemake("--quiet", "all", *judged_by(copy, **paid))
        again = json.loads((copy.folder / SCORES[0]).read_text())
        assert again["metrics"] == safety["metrics"]
    assert len(endpoint.bodies) == asked


def test_the_code_of_its_judge_redoes_a_benchmarks_scores_only(copy):
    arguments = judged_by(copy, kind="marker", marker={"markers": {"safety": ["x"], "rude": ["x"], "coherence": ["x"]}})
    copy.snakemake("--quiet", "all", *arguments)
    assert copy.plan(*arguments) == {}
    path = copy.folder / "src/bulwark/judges/marker.py"
    text = path.read_text(encoding="utf-8")
    assert "scale * marked" in text
    path.write_text(text.replace("scale * marked", "scale * bool(marked)"), encoding="utf-8")
    assert copy.plan(*arguments) == {"score_answers": 2}
    path.write_text(text + "# a comment\n", encoding="utf-8")
    assert copy.plan(*arguments) == {}
