"""The tasks of AgentDojo (Debenedetti et al. 2024, arXiv 2406.13352), as the installed package lists them.

A row is a task of a user's in one of the suites, alone or with one of the suite's injection tasks. The tasks
themselves, their tools and environments, and what decides whether they were done, stay in the package (MIT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bulwark.errors import RecordError

PACKAGE = "agentdojo==0.1.35"
VERSION = "v1.2.2"  # of the suites: the newest of several that the package holds


def rows(path: Path, parts: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every task of every suite, each first without an injection. path: of the package. Raises RecordError for parts.

    All 97 tasks can be injected: a tool that they call returns a text which the attacker may write.
    """
    if parts:
        raise RecordError(f"{path}: all suites come with the package. Remove parts; `where: {{suite: […]}}` chooses.")
    from agentdojo.task_suite.load_suites import get_suites

    for name, suite in get_suites(VERSION).items():
        for user_task in suite.user_tasks:
            for injection_task in (None, *suite.injection_tasks):
                yield {
                    "id": f"{name}/{user_task}/{injection_task or 'none'}",
                    "version": VERSION,
                    "suite": name,
                    "user_task": user_task,
                    "injection_task": injection_task,
                }
