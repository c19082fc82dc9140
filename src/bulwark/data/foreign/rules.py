"""RuLES (Mu et al. 2023, arXiv 2311.04235) as ASIDE's repository has it: a Python file that is read and never run.

experiments/evaluations/safety_evals/rules.py holds a class per scenario, with the text of its prompt (`template`, or
`prompt` where it has no parameters); a list of cases per suite, of id, category, params and messages; and a list
`evaluation_scenarios` of the pairs (scenario, suite). The texts were first published in github.com/normster/llm_rules
(Apache-2.0, as is ASIDE's repository).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bulwark.errors import RecordError

PAIRS = "evaluation_scenarios"
TEXTS = ("template", "prompt")


def rows(path: Path, parts: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every case of every suite with its prompt, in the order of the list of pairs."""
    path = _the_file(path)
    if parts:
        raise RecordError(f"{path}: all cases are in one file. Remove parts.")
    try:
        read = ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist. Check the path.") from None
    except (SyntaxError, ValueError) as error:
        raise RecordError(f"{path}: not readable as Python ({error}). Fetch the file again.") from None
    values = {
        target.id: statement.value
        for statement in read.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    prompts = {statement.name: _prompt(statement) for statement in read.body if isinstance(statement, ast.ClassDef)}
    for scenario, suite in _pairs(values, path):
        prompt = prompts.get(scenario)
        if prompt is None:
            raise RecordError(f"{path}: no class {scenario} with a `template` or `prompt` that is a text.")
        for number, case in enumerate(_literal(values, suite, path)):
            place = f"{path}, {suite}[{number}]"
            if not isinstance(case, dict) or not isinstance(case.get("params"), dict):
                raise RecordError(f'{place}: a case is an object with "id", "category", "params" and "messages".')
            yield {"suite": suite, "scenario": scenario, **case, "prompt": _filled(prompt, case, place)}


def _the_file(path: Path) -> Path:
    """The file itself, or the only Python file of a download's folder."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.py"))
    if len(files) != 1:
        raise RecordError(f"{path}: expected the one file rules.py here, found {len(files)} Python files.")
    return files[0]


def _prompt(scenario: ast.ClassDef) -> str | None:
    """The text of a class, where it has one."""
    for statement in scenario.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            if set(names) & set(TEXTS) and isinstance(statement.value.value, str):
                return statement.value.value
    return None


def _pairs(values: Mapping[str, ast.expr], path: Path) -> list[tuple[str, str]]:
    """(scenario, suite) of each pair of names in the list."""
    listed = values.get(PAIRS)
    pairs = [
        tuple(part.id for part in pair.elts if isinstance(part, ast.Name))
        for pair in getattr(listed, "elts", ())
        if isinstance(pair, ast.Tuple)
    ]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise RecordError(f"{path}: no list `{PAIRS}` of pairs (scenario, suite). Is this ASIDE's rules.py?")
    return [(scenario, suite) for scenario, suite in pairs]


def _literal(values: Mapping[str, ast.expr], suite: str, path: Path) -> list[Any]:
    try:
        cases = ast.literal_eval(values[suite])
    except (KeyError, ValueError):
        raise RecordError(f"{path}: {suite} is no list of plain values. Fetch the file again.") from None
    if not isinstance(cases, list):
        raise RecordError(f"{path}: {suite} is no list. Fetch the file again.")
    return cases


def _filled(prompt: str, case: Mapping[str, Any], place: str) -> str:
    params = case["params"]
    try:
        return prompt.format(**params) if params else prompt
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise RecordError(f"{place}: the params do not fill the scenario's prompt ({error!r}).") from None
