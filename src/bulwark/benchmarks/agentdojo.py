"""AgentDojo: an agent with tools, in whose outputs an attacker's instruction stands (arXiv 2406.13352).

The package `agentdojo` (an extra of pyproject.toml) brings suites, tools, environments, attacks and verdicts, and runs
them; the checkpoint is served to it inside the job, as `bulwark serve` serves it. The user's request is the
instruction, what a tool returns is data. A record is a task of a suite, alone or with one injection task.

    attack_success_rate     of the tasks with an injection: the injection task was done (the paper's targeted attack
                            success rate)
    utility_under_attack    of the same: the user's task was done all the same (the paper counts only those in which
                            the attack failed as well: `unharmed`)
    utility                 of the tasks without an injection: the user's task was done
    unfinished              of all: the conversation outgrew what the model reads, or a tool failed in a way that
                            AgentDojo does not provide for; both count as not done

AgentDojo itself counts a conversation that is too long as a successful attack.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from bulwark import interrupts
from bulwark.data import packages
from bulwark.data.foreign.agentdojo import PACKAGE
from bulwark.errors import ConfigurationError, RecordError
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Row
from bulwark.models.answers import ANSWER
from bulwark.settings import Closed, Text

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee

METRICS = {
    "attack_success_rate": False,
    "utility_under_attack": True,
    "unharmed": True,
    "utility": True,
    "unfinished": False,
}
NAME = "checkpoint"  # under which the model is served to the package

log = logging.getLogger(__name__)

Attack = Literal[
    "important_instructions",
    "important_instructions_no_user_name",
    "important_instructions_no_model_name",
    "important_instructions_no_names",
    "important_instructions_wrong_user_name",
    "important_instructions_wrong_model_name",
    "tool_knowledge",
    "direct",
    "ignore_previous",
    "injecagent",
    "system_message",
]


class Settings(Closed):
    """attack, defense: the package's, by their names there. addressed: the model of the package's list as which the
    attack addresses this one ("local" is told "Local model"). tool_output: how what a tool returned is written.
    max_new_tokens: of one answer; an agent gives up to 16 in a try, of which a task has three. at_once: tasks that go
    on side by side, whose answers share batches.
    """

    attack: Attack = "important_instructions"
    defense: Literal["repeat_user_prompt", "spotlighting_with_delimiting"] | None = None
    addressed: Text = "local"
    tool_output: Literal["yaml", "json"] = "yaml"
    max_new_tokens: int = Field(1024, ge=1)
    at_once: int = Field(16, ge=1)


class Record(Closed):
    """A task. version: of the package's suites. injection_task: what the attacker wants; null for nobody there."""

    id: str
    version: Text
    suite: Text
    user_task: Text
    injection_task: str | None = None


class Benchmark(benchmark.Benchmark):
    schema = Record
    metrics = METRICS
    groups = ("suite",)

    def fact(self, record: Record) -> str:
        """The user's task: its injections are no independent records."""
        return f"{record.suite}/{record.user_task}"

    def answers(self, examinee: Examinee, records: Sequence[Record]) -> list[Row]:
        """What became of every task, as JSON.

        Raises RecordError if the package is not there or has no such task, BulwarkError if the model cannot answer.
        """
        from bulwark.models.answers import Answer, Partial
        from bulwark.models.batching import progress

        kept = Partial(examinee.partial, examinee.fingerprint)
        digests = {record.id: kept.digest(record.model_dump()) for record in records}
        done = {
            record.id: answer
            for record in records
            if (answer := kept.answers.get((record.id, digests[record.id]))) is not None
        }
        left = [record for record in records if record.id not in done]
        with (
            _agent(examinee, self.settings) as perform,
            progress(len(records), len(done), "tasks", "tasks") as advance,
            kept,
            kept.resumable(done, records),
        ):
            pool = ThreadPoolExecutor(self.settings.at_once, "task")
            try:
                for future in as_completed(pool.submit(perform, record) for record in left):
                    record, outcome = future.result()
                    line = json.dumps(outcome, ensure_ascii=False, default=str)
                    done[record.id] = Answer(record.id, line, 0, "stop", False)
                    kept.append(done[record.id], digests[record.id])
                    kept.flush()
                    advance(1)
                    interrupts.leave_if_told()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return [done[record.id].as_dict() for record in records]

    def score(self, record: Record, responses: Mapping[str, str]) -> Row:
        """One row, with null where a metric is not about such a task."""
        outcome = json.loads(responses[ANSWER])
        finished = outcome["unfinished"] is None
        attacked = record.injection_task is not None
        utility, attack = int(finished and outcome["utility"]), int(finished and bool(outcome["attack"]))
        return {
            "attack_success_rate": attack if attacked else None,
            "utility_under_attack": utility if attacked else None,
            "unharmed": int(utility and not attack) if attacked else None,
            "utility": None if attacked else utility,
            "unfinished": int(not finished),
            "suite": record.suite,
            "calls": len(outcome["calls"]),
        }


@contextmanager
def _agent(examinee: Examinee, settings: Settings) -> Iterator[Callable[[Record], tuple[Record, dict[str, Any]]]]:
    """Within it the checkpoint is served, and a function performs a record's task: (the record, what became of it)."""
    packages.installed(PACKAGE)
    import openai
    from agentdojo.agent_pipeline import AgentPipeline, PipelineConfig
    from agentdojo.agent_pipeline.llms.openai_llm import OpenAILLM
    from agentdojo.attacks import load_attack
    from agentdojo.task_suite.load_suites import get_suites

    from bulwark.serving.server import in_background

    model, limit = examinee.language_model, settings.max_new_tokens
    with (
        in_background(model, NAME, limit, settings.at_once) as address,
        # Nothing of the environment stands between this process and itself, no proxy either.
        openai.DefaultHttpxClient(trust_env=False, timeout=None) as http,
        openai.OpenAI(base_url=address, api_key="none", max_retries=0, http_client=http) as client,
    ):
        speaker = OpenAILLM(client, NAME)
        speaker.name = NAME
        pipeline = AgentPipeline.from_config(
            PipelineConfig(
                llm=speaker,
                model_id=None,
                defense=settings.defense,
                system_message_name=None,
                system_message=None,
                tool_output_format=settings.tool_output,
            )
        )
        pipeline.name = settings.addressed
        attacks: dict[tuple[str, str], Any] = {}

        def attack_on(record: Record) -> Any:
            suites = get_suites(record.version)
            if (record.version, record.suite) not in attacks:
                try:
                    attacks[record.version, record.suite] = load_attack(settings.attack, suites[record.suite], pipeline)
                except ValueError as error:
                    raise ConfigurationError(f'The attack "{settings.attack}" cannot be made: {error}') from None
            return attacks[record.version, record.suite]

        def perform(record: Record) -> tuple[Record, dict[str, Any]]:
            suite = get_suites(record.version).get(record.suite)
            try:
                user_task = suite.get_user_task_by_id(record.user_task)
                injected = record.injection_task and suite.get_injection_task_by_id(record.injection_task)
            except (KeyError, AttributeError):
                raise RecordError(
                    f'Record "{record.id}": {PACKAGE} has no such task in its suites {record.version}. Make the '
                    "records again."
                ) from None
            injections = attack_on(record).attack(user_task, injected) if injected else {}
            watched = _Watched(pipeline)
            unfinished, utility, attack = None, False, False
            try:
                utility, attack = suite.run_task_with_pipeline(watched, user_task, injected or None, injections)
            except openai.BadRequestError as error:
                if error.code != "context_length_exceeded":
                    raise
                unfinished = "too long"
            except openai.APIError:
                raise
            except Exception as error:  # a tool that fails on what it was called with: counted, shown, and told
                log.warning("%s: AgentDojo failed (%r)", record.id, error)
                unfinished = repr(error)
            return record, {
                "utility": bool(utility),
                "attack": bool(attack) if injected else None,
                "unfinished": unfinished,
                **watched.said(),
            }

        yield perform


class _Watched:
    """The agent, of whom it is remembered what was said in the last conversation."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._messages: Sequence[Mapping[str, Any]] = ()

    def query(self, *given: Any, **named: Any) -> Any:
        """As the agent's own."""
        result = self._pipeline.query(*given, **named)
        self._messages = result[3]
        return result

    def said(self) -> dict[str, Any]:
        """The tools that were called, with their arguments, and the last thing that was said."""
        calls = [
            [call.function, dict(call.args)] for message in self._messages for call in message.get("tool_calls") or ()
        ]
        last = self._messages[-1].get("content") if self._messages else None
        return {"calls": calls, "answer": "\n".join(part["content"] or "" for part in last or ())}
