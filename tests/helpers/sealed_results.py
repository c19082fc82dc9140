"""Results that no job has made: files of some bytes under results/, sealed as those of a plan would be."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bulwark import seals
from bulwark.files import sha256_of, write_text
from tests.conftest import Checkout

Plan = list[dict[str, Any]]


def planned(checkout: Checkout, *arguments: str, check: bool = True) -> tuple[Plan, str]:
    """All tasks of a plan, with their standings, and what the dry run printed."""
    told = checkout.folder.parent / f"standing-{len(list(checkout.folder.parent.iterdir()))}.json"
    os.environ["BULWARK_STANDING"] = str(told)
    try:
        done = checkout.snakemake("--dry-run", "--quiet", "rules", *arguments, check=check)
    finally:
        del os.environ["BULWARK_STANDING"]
    return (json.loads(told.read_text(encoding="utf-8")) if told.exists() else []), done.stdout


def fabricate(checkout: Checkout, plan: Plan, settings: Callable[[str], Any] = lambda path: None) -> None:
    """Make all files of a plan; settings: of the result at a path, which its manifest or provenance holds."""
    with contextlib.chdir(checkout.folder):
        ahead = list(plan)
        while ahead:
            ready = [task for task in ahead if all(os.path.exists(path) for path in task["inputs"])]
            assert ready, f"nothing can be made of {ahead[0]}"
            for task in ready:
                _make(task, settings)
            ahead = [task for task in ahead if task not in ready]


def _make(task: dict[str, Any], settings: Callable[[str], Any]) -> None:
    for path in map(Path, task["outputs"]):
        if seals.is_manifest(path):
            weights = path.with_name("weights.bin")
            write_text(weights, f"{path}")
            listed = {"name": weights.name, "bytes": weights.stat().st_size, "sha256": sha256_of(weights)}
            seals.write_manifest(path, {"files": [listed], "template": "chat", "settings": settings(str(path))})
        else:
            write_text(path, json.dumps({"path": str(path), "settings": settings(str(path))}))
    rule = task["asked"].split(" ")[1].split(":")[0]
    inputs = {path: seals.content(path) for path in task["inputs"]}
    for path in task["outputs"]:
        seals.seal(path, task["asked"], inputs, rule)
