"""Digests of code: what makes something computed again when a method changes, and not when a comment does."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from bulwark import steps
from bulwark.errors import ConfigurationError
from bulwark.miniature import records as miniature_records


def code_digest(module: str, *roots: str) -> str:
    """A digest of what the code of `module` does: comments, docstrings and layout do not change it.

    With `roots`, only of these top-level definitions and those of the module that they use. The workflow tracks it as
    a parameter, so that editing a step's method redoes that step and its descendants while rewording a comment
    redoes nothing.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigurationError(f"There is no module {module}.")
    path = Path(spec.origin)
    return _digest_of(path, path.stat().st_mtime_ns, roots)


@cache  # a plan asks for the same ones in every job
def _digest_of(path: Path, _changed_at: int, roots: tuple[str, ...]) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:] or [ast.Pass()]
    if roots:
        tree.body = _reachable(tree, roots)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def step_digest(kind: str) -> str:
    """A digest of the code that makes a kind of step what it is: its module, and those that its `METHOD` names."""
    modules = (f"{steps.__name__}.{kind}", *getattr(steps.module_of(kind), "METHOD", ()))
    return "-".join(code_digest(module) for module in modules)


def world_digest() -> str:
    """A digest of the code that makes the miniature's records, tokenizer and model."""
    folder = Path(miniature_records.__file__).parent
    names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    digests = (code_digest(f"bulwark.miniature.{name}") for name in names)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _reachable(tree: ast.Module, roots: tuple[str, ...]) -> list[ast.stmt]:
    """The top-level statements that define `roots`, or a name that one of these statements uses, in their order."""
    definitions: dict[str, ast.stmt] = {}
    for statement in tree.body:
        for node in ast.walk(statement) if isinstance(statement, ast.Assign | ast.AnnAssign) else ():
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                definitions[node.id] = statement
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            definitions[statement.name] = statement
        if isinstance(statement, ast.Import | ast.ImportFrom):
            definitions |= {(alias.asname or alias.name): statement for alias in statement.names}
    found: list[ast.stmt] = []
    names = list(roots)
    while names:
        statement = definitions.get(names.pop())
        if statement is not None and statement not in found:
            found.append(statement)
            names += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return sorted(found, key=lambda statement: statement.lineno)
