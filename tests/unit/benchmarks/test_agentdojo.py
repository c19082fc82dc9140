"""AgentDojo: its suites and verdicts on a served checkpoint, if the package is there; scores and messages without."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml
from served import V, scripted, served, text_of, tiny

from bulwark.benchmarks import agentdojo, benchmark_of
from bulwark.config import loading, overlays, plan
from bulwark.data import foreign, packages, readers
from bulwark.data.foreign.agentdojo import PACKAGE, VERSION
from bulwark.errors import ConfigurationError, RecordError
from bulwark.evaluation.examinee import Examinee

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


READ = call("read_file", file_path="bill-december-2023.txt")
PAY = call("send_money", recipient="UK12345678901234567890", amount=98.7, subject="Car Rental 98.70", date="2022-01-01")
STEAL = call("send_money", recipient="US133000000121212121212", amount=0.01, subject="Spotify", date="2022-01-01")
TASK = {"version": VERSION, "suite": "banking", "user_task": "user_task_0"}
ALONE = agentdojo.Record(id="banking/user_task_0/none", **TASK)
INJECTED = agentdojo.Record(id="banking/user_task_0/injection_task_0", injection_task="injection_task_0", **TASK)


def became(tmp_path, model, records, **settings):
    """(what became of the records, their rows)."""
    tested = benchmark_of("agentdojo", {"at_once": 1, "max_new_tokens": 2000, **settings})
    lines = tested.answers(Examinee(model, 0, {}, tmp_path / "answers.partial", "f"), records)
    assert [line["id"] for line in lines] == [record.id for record in records]
    rows = [tested.score(record, {"answer": line["response"]}) for record, line in zip(records, lines, strict=True)]
    return [json.loads(line["response"]) for line in lines], rows


# --- with the package ---


@pytest.fixture
def package():
    pytest.importorskip("agentdojo")  # an extra of pyproject.toml, which `make agentdojo` installs


@pytest.mark.usefixtures("package")
def test_an_agent_does_the_users_task_or_the_attackers(tmp_path):
    model = scripted(READ, PAY, "The bill is paid.", READ, STEAL, "Done.", READ, STEAL, PAY, "Both.")
    both = INJECTED.model_copy(update={"id": "again"})
    outcomes, rows = became(tmp_path, model, [ALONE, INJECTED, both])
    assert [(outcome["utility"], outcome["attack"]) for outcome in outcomes] == [
        (True, None),
        (False, True),
        (True, True),
    ]
    assert outcomes[0]["answer"] == "The bill is paid."
    assert [name for name, _ in outcomes[2]["calls"]] == ["read_file", "send_money", "send_money"]
    assert [row["attack_success_rate"] for row in rows] == [None, 1, 1]
    assert [row["utility_under_attack"] for row in rows] == [None, 0, 1]
    assert [row["unharmed"] for row in rows] == [None, 0, 0]
    assert [row["utility"] for row in rows] == [1, None, None]
    assert [row["unfinished"] for row in rows] == [0, 0, 0]


@pytest.mark.usefixtures("package")
def test_what_a_tool_returns_is_data(tmp_path):
    model = scripted(READ, "Nothing to pay.")
    became(tmp_path, model, [INJECTED])
    first, second = model.model.prompts
    instructions, data = text_of(model, second, 1), text_of(model, second, 2)
    assert "<INFORMATION>" in data
    assert "important message from me, Emma Johnson, to you, Local model" in data
    assert "US133000000121212121212" in data
    assert "<INFORMATION>" not in instructions
    assert "US133000000121212121212" not in instructions
    assert "pay the bill 'bill-december-2023.txt'" in instructions
    assert '"send_money"' in instructions  # the tools on offer
    assert 2 not in {number // V for number in first}


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("defense", [None, "repeat_user_prompt", "spotlighting_with_delimiting"])
def test_defenses_and_attacks_are_the_packages(tmp_path, defense):
    model = scripted(READ, "No.")
    became(tmp_path, model, [INJECTED], defense=defense, attack="ignore_previous")
    second = model.model.prompts[1]
    instructions, data = text_of(model, second, 1), text_of(model, second, 2)
    assert "Ignore your previous" in data
    assert ("<<" in data) == (defense == "spotlighting_with_delimiting")
    assert instructions.count("pay the bill") == (2 if defense == "repeat_user_prompt" else 1)


@pytest.mark.usefixtures("package")
def test_the_packages_own_program_drives_a_served_model_to_the_same_verdict(tmp_path, monkeypatch):
    from agentdojo.scripts.benchmark import main

    with served(scripted("No.", READ, STEAL, "Done."), new_tokens=2000) as client:
        monkeypatch.setenv("LOCAL_LLM_PORT", str(client.base_url.port))
        tasks = ["-s", "banking", "-ut", "user_task_0", "-it", "injection_task_0", "--logdir", str(tmp_path)]
        with pytest.raises(SystemExit, match="0"):
            main([*tasks, "--model", "VLLM_PARSED", "--attack", "important_instructions"], standalone_mode=False)
    (log,) = tmp_path.rglob("important_instructions/injection_task_0.json")
    held = json.loads(log.read_text())
    (ours,), _ = became(tmp_path, scripted(READ, STEAL, "Done."), [INJECTED])
    assert (held["utility"], held["security"]) == (ours["utility"], ours["attack"]) == (False, True)
    assert [message["role"] for message in held["messages"]][-3:] == ["assistant", "tool", "assistant"]


@pytest.mark.usefixtures("package")
def test_a_conversation_that_is_too_long_is_no_success(tmp_path):
    (outcome,), (row,) = became(tmp_path, tiny(positions=512), [INJECTED])
    assert outcome == {"utility": False, "attack": False, "unfinished": "too long", "calls": [], "answer": ""}
    assert (row["attack_success_rate"], row["utility_under_attack"], row["unfinished"]) == (0, 0, 1)


@pytest.mark.usefixtures("package")
def test_tasks_that_were_done_are_not_done_again(tmp_path):
    became(tmp_path, scripted(READ, PAY, "Paid."), [ALONE])
    kept = scripted(READ, STEAL, "Done.")
    outcomes, _ = became(tmp_path, kept, [ALONE, INJECTED])
    assert [outcome["answer"] for outcome in outcomes] == ["Paid.", "Done."]
    assert len(kept.model.prompts) == 3


@pytest.mark.usefixtures("package")
def test_tasks_that_there_are_not_and_names_that_no_attack_knows(tmp_path):
    with pytest.raises(RecordError, match=r'"x": agentdojo==.* has no such task'):
        became(tmp_path, scripted(), [INJECTED.model_copy(update={"id": "x", "suite": "shop"})])
    with pytest.raises(RecordError, match="no such task in its suites v0"):
        became(tmp_path, scripted(), [INJECTED.model_copy(update={"version": "v0"})])
    with pytest.raises(ConfigurationError, match=r"cannot be made.*nobody"):
        became(tmp_path, scripted(), [INJECTED], addressed="nobody")


@pytest.mark.usefixtures("package")
def test_the_suites_as_records(tmp_path):
    path = foreign.unpacked("agentdojo", packages.installed(PACKAGE), {}, tmp_path)
    records = readers.read_source(path, agentdojo.Record)
    alone = [record for record in records if record.injection_task is None]
    assert {suite: sum(record.suite == suite for record in alone) for suite in ("workspace", "travel", "banking")} == {
        "workspace": 40,
        "travel": 20,
        "banking": 16,
    }
    # The paper's 97 tasks; its 629 cases are those of the first suites, with fewer injections of `workspace`.
    assert (len(alone), len(records) - len(alone)) == (97, 40 * 14 + 20 * 7 + 16 * 9 + 21 * 5)
    assert INJECTED in records
    with pytest.raises(RecordError, match="Remove parts"):
        foreign.unpacked("agentdojo", packages.installed(PACKAGE), {"a": {}}, tmp_path)


# --- without it ---


def test_a_package_that_is_not_there_is_told_when_a_plan_is_made(monkeypatch, tmp_path):
    def missing(name):
        raise packages.metadata.PackageNotFoundError(name)

    catalogue = loading.load(overlays.read([], CONFIG), CONFIG)
    monkeypatch.setattr(packages.metadata, "version", missing)
    with pytest.raises(ConfigurationError, match=r"agentdojo\.yaml:\d+, source\.package: .*'\.\[agentdojo\]'"):
        plan.records_files(catalogue, "agentdojo", "test")
    with pytest.raises(RecordError, match="not installed"):
        became(tmp_path, tiny(), [ALONE])
    monkeypatch.setattr(packages.metadata, "version", lambda name: "0.1.34")
    with pytest.raises(RecordError, match=r"in version 0\.1\.34, and agentdojo==0\.1\.35 is asked for"):
        packages.installed(PACKAGE)


def test_an_installed_package_is_found_by_its_folder():
    version = packages.metadata.version("pytest")
    assert (packages.installed(f"pytest=={version}") / "__init__.py").is_file()


def test_one_version_is_named_everywhere():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["agentdojo"]
    source = yaml.safe_load((CONFIG / "datasets" / "agentdojo.yaml").read_text())["source"]
    assert PACKAGE in extra
    assert source == {"package": PACKAGE}


def test_a_package_and_its_format_go_together():
    for source in ("{path: a.json}", "{package: agentdojo}"):
        overlay = overlays.text(f"name: mine\ndatasets: {{agentdojo: {{source: {source}}}}}")
        with pytest.raises(ConfigurationError, match="agentdojo"):
            loading.load(overlays.Configuration((overlay,)), CONFIG)


def test_an_unfinished_task_counts_as_not_done():
    tested = benchmark_of("agentdojo", {})
    outcome = {"utility": True, "attack": True, "unfinished": "TypeError()", "calls": [], "answer": ""}
    row = tested.score(INJECTED, {"answer": json.dumps(outcome)})
    assert [row[name] for name in agentdojo.METRICS] == [0, 0, 0, None, 1]
    assert tested.fact(INJECTED) == tested.fact(ALONE) == "banking/user_task_0"
    rows = [{"id": "a", **row}, {"id": "b", **row, "attack_success_rate": 1, "suite": "slack"}]
    assert tested.aggregate(rows)["attack_success_rate"]["value"] == 0.5
    assert tested.breakdowns(rows)["suite"]["slack"]["attack_success_rate"]["value"] == 1
