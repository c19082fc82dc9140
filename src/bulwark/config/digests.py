"""Digests of code: what makes something computed again when a method changes, and not when a comment does.

A digest covers the definitions that its roots reach: names are followed through the package's modules, imports inside
functions included, down to `UNTRACKED`. Comments, docstrings, annotations of functions, the layout, the order of
definitions, log messages and the texts of errors do not count. A plan parses each file once. A definition that asks
where its own file lies (`__file__`) reads what lies there: of its folder all files but code count, byte by byte.

What is found by its name at run time (a kind of step, benchmark, judge, figure) cannot be followed; whoever asks for
a digest names it as a root of its own.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from bulwark.data.foreign import FOREIGN
from bulwark.errors import ConfigurationError
from bulwark.files import files_below

# Modules (or packages) that cannot change a result, with the reason; names are not followed into them.
UNTRACKED = {
    "bulwark.errors": "say what is wrong with an input; whoever gets one has no result",
    "bulwark.files": "writes files whole and digests them; what is in them is decided elsewhere",
    "bulwark.interrupts": "ends a process early, which then has no result",
    "bulwark.jobs": "describes jobs and starts processes",
    "bulwark.logs": "where messages go",
    "bulwark.models.manifests": "records what a checkpoint is made of, and finds it again",
    "bulwark.seals": "records what a result is made of and holds, and refuses what was changed since",
    "bulwark.settings": "checks a configuration; the settings that come out are a parameter of the job themselves",
    "bulwark.training.progress": "shows a training while it runs",
}

STEP = "bulwark.steps:execute"
SNAPSHOT = "bulwark.training.saved.snapshots:take_snapshot"
CHOICE = "bulwark.models.folders.chosen:choose_trial"
ANSWER = "bulwark.evaluation.answer:answer"
SCORE = "bulwark.evaluation.score:score_file"
JUDGE = "bulwark.judges:judge"
# What of a benchmark's module (functions, or members of its classes) makes its answers, and what only its scores.
ANSWERING = frozenset({"load", "prompts", "answers"})
SCORING = frozenset({"METRICS", "metrics", "groups", "means", "scoring", "judge", "requests"})
SCORING |= {"fact", "read", "score", "aggregate", "breakdowns", "reported"}


def code_digest(*roots: str, without: Collection[str] = ()) -> str:
    """A digest of what `roots` do: whole modules, "bulwark.steps.aside", or definitions, "module:name".

    without: names of members (methods and fields) that are left out of every class.
    Raises ConfigurationError for a module or name that does not exist.
    """
    return _package().digest(roots, frozenset(without))


def step_roots(kind: str) -> tuple[str, ...]:
    """The code of a kind of step: its module and, unless it has a `run` of its own, fine-tuning."""
    module = f"bulwark.steps.{kind}"
    return (module,) if "run" in _package().names(module) else (module, STEP)


def answers_digest(benchmark: str) -> str:
    """A digest of the code that makes the answers of a benchmark module: its own and that of generation."""
    return code_digest(ANSWER, *_package().some_of(f"bulwark.benchmarks.{benchmark}", ANSWERING), without=SCORING)


def scores_digest(benchmark: str, judge: str | None) -> str:
    """A digest of the code that scores the answers of a benchmark module, and of the kind of judge that it asks."""
    own = _package().some_of(f"bulwark.benchmarks.{benchmark}", SCORING | ANSWERING - {"answers"})
    return code_digest(SCORE, *own, *judge_roots(judge), without={"answers"})


def figure_digest(kind: str) -> str:
    """A digest of the code that draws a kind of figure."""
    return code_digest("bulwark.reporting.figures:make_figure", f"bulwark.reporting.figures.{kind}")


def records_digest(kind: str, format: str, *, made: bool) -> str:
    """A digest of the code that reads the records of a kind in a format; made: that writes the miniature's, too."""
    module = f"bulwark.benchmarks.{kind}"
    schema = [f"{module}:Record"] if _package().module(module) else []
    contrasts = ["bulwark.data.contrasts"] if kind in ("contrast", "traits") else []
    foreign = [f"bulwark.data.foreign.{format}"] if format in FOREIGN else []
    world = ["bulwark.miniature.records:write"] if made else []
    if kind == "mixture":
        return code_digest("bulwark.data.mixtures:mixed", "bulwark.data.records:write_records")
    return code_digest(
        "bulwark.data.readers:read_split", "bulwark.data.records:write_records", *schema, *contrasts, *foreign, *world
    )


def judge_roots(kind: str | None) -> tuple[str, ...]:
    """The code of a kind of judge; none for none."""
    return () if kind is None else (JUDGE, f"bulwark.judges.{kind}")


@cache
def _package() -> Package:
    return Package(Path(__file__).parents[1])


@dataclass
class _Part:
    """Statements that define one name. text: what they do. chains: names used, with attributes: ("files", "digest")."""

    text: list[str] = field(default_factory=list)
    chains: set[tuple[str, ...]] = field(default_factory=set)
    imports: dict[str, str] = field(default_factory=dict)


@dataclass
class _Module:
    """definitions: the statements behind each name; those that define none (and run on import) under "".

    imports: {name here: dotted name}.
    """

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, str]


class Package:
    """The source of a package in `folder`, whose name is the folder's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.module = cache(self._module)
        self.part = cache(self._part)
        self.uses = cache(self._uses)
        self.beside = cache(self._beside)
        self.digest = cache(self._digest)

    def names(self, module: str) -> set[str]:
        """What a module defines or imports at its top. Raises ConfigurationError if there is no such module."""
        read = self.module(module)
        if read is None:
            raise ConfigurationError(f"There is no module {module}.")
        return {*read.definitions, *read.imports} - {""}

    def some_of(self, module: str, names: Collection[str]) -> list[str]:
        """Roots: those of `names` that a module defines, and all of its classes."""
        self.names(module)
        return [
            f"{module}:{name}"
            for name, statements in sorted(self.module(module).definitions.items())
            if name in names or any(isinstance(statement, ast.ClassDef) for statement in statements)
        ]

    def covered(self, *roots: str, without: Collection[str] = ()) -> set[tuple[str, str]]:
        """Every (module, definition) that `roots` reach; the definition "" is what runs when the module is imported."""
        without = frozenset(without)
        reached: set[tuple[str, str]] = set()
        ahead = [part for root in roots for part in self._root(root)]
        while ahead:
            part = ahead.pop()
            if part in reached:
                continue
            reached.add(part)
            if part[1]:
                ahead.append((part[0], ""))
            ahead += self.uses(*part, without)[0]
        return {part for part in reached if self.part(*part, without).text}

    def _digest(self, roots: tuple[str, ...], without: frozenset[str]) -> str:
        texts, read = [], set()
        for module, name in self.covered(*roots, without=without):
            external = self.uses(module, name, without)[1]
            part = self.part(module, name, without)
            texts.append("\n".join([module, name, *part.text, *sorted(external)]))
            if ("__file__",) in part.chains:
                read |= self.beside(module)
        texts += read
        return hashlib.sha256("\n\n".join(sorted(texts)).encode()).hexdigest()[:16]

    def _beside(self, module: str) -> frozenset[str]:
        """Path and digest of every file in a module's folder, and in those below it, that holds no code."""
        folder = self._file(module).parent
        names = (name for name in files_below(folder) if "__pycache__" not in name and not name.endswith(".py"))
        digests = ((name, hashlib.sha256((folder / name).read_bytes()).hexdigest()) for name in names)
        return frozenset(f"{module}\n{name}\n{digest}" for name, digest in digests)

    def _root(self, root: str) -> list[tuple[str, str]]:
        module, _, name = root.partition(":")
        known = self.names(module)
        if not name:
            return self._whole(module)
        if name not in known:
            raise ConfigurationError(f"The module {module} does not define {name}.")
        return self._found(f"{module}.{name}")

    def _uses(self, module: str, name: str, without: frozenset[str]) -> tuple[list[tuple[str, str]], set[str]]:
        """What a definition uses: parts of the package, and dotted names outside of it."""
        read, part = self.module(module), self.part(module, name, without)
        inside: list[tuple[str, str]] = []
        outside: set[str] = set()
        for head, *attributes in part.chains:
            target = part.imports.get(head)
            if target is None and head in read.definitions:
                inside.append((module, head))
                continue
            target = target or read.imports.get(head)
            if target is None:  # a local variable, or one of Python's own
                continue
            if target.split(".")[0] == self.name:
                inside += self._found(".".join([target, *attributes]))
            else:
                outside.add(f"{head} is {target}")
        return inside, outside

    def _found(self, dotted: str) -> list[tuple[str, str]]:
        """The parts that a dotted name of the package stands for: a definition, or a whole module."""
        module, rest = self.name, dotted.split(".")[1:]
        while rest and self.module(f"{module}.{rest[0]}") is not None:
            module = f"{module}.{rest.pop(0)}"
        if any(module == name or module.startswith(f"{name}.") for name in UNTRACKED):
            return []
        read = self.module(module)
        if not rest:
            return self._whole(module)
        if rest[0] in read.definitions:
            return [(module, rest[0])]
        if rest[0] in read.imports:
            target = ".".join([read.imports[rest[0]], *rest[1:]])
            return self._found(target) if target.split(".")[0] == self.name else []
        return [] if rest[0] == "__name__" else self._whole(module)

    def _whole(self, module: str) -> list[tuple[str, str]]:
        return [(module, name) for name in self.module(module).definitions]

    def _file(self, name: str) -> Path:
        """Where the source of a module of this name would be."""
        path = self.folder.joinpath(*name.split(".")[1:])
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def _module(self, name: str) -> _Module | None:
        """Parse a module; None if there is none of that name."""
        path = self._file(name)
        if not path.is_file():
            return None
        definitions: dict[str, list[ast.stmt]] = {"": []}
        imports: dict[str, str] = {}
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imports |= _imported(statement)
                continue
            for defined in _defined(statement) or [""]:
                definitions.setdefault(defined, []).append(statement)
        definitions.pop("__all__", None)
        return _Module(definitions, imports)

    def _part(self, module: str, name: str, without: frozenset[str]) -> _Part:
        part = _Part()
        for statement in self.module(module).definitions[name]:
            _read(statement, part, without)
        return part


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return [
            node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
    return []


def _imported(statement: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """{name here: dotted name} of an import."""
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}
    return {
        alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
        for alias in statement.names
    }


def _read(node: ast.AST, part: _Part, without: frozenset[str]) -> None:
    """Write down what `node` does, without what cannot change a result, and the names that it uses."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        part.imports |= _imported(node)
        return
    if _changes_nothing(node):
        return
    part.text.append(type(node).__name__)
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        error = _chain(node.exc.func)
        if error and error[-1].endswith("Error"):
            part.text += error
            return
    if isinstance(node, ast.Name | ast.Attribute) and (chain := _chain(node)):
        part.chains.add(chain)
        part.text += chain
        return
    for name in node._fields:
        value = getattr(node, name, None)
        if name in ("ctx", "returns", "type_comment") or (isinstance(node, ast.arg) and name == "annotation"):
            continue
        if isinstance(node, ast.ClassDef) and name == "body":
            value = [member for member in value if not without.intersection(_defined(member))]
        part.text.append(name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                _read(item, part, without)
            else:
                part.text.append(repr(item))


def _changes_nothing(node: ast.AST) -> bool:
    """Whether a statement is a docstring, a log message, or there for annotations only."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or (
            isinstance(node.value, ast.Call) and _chain(node.value.func)[:1] == ("log",)
        )
    return isinstance(node, ast.If) and _chain(node.test)[-1:] == ("TYPE_CHECKING",)


def _chain(node: ast.AST) -> tuple[str, ...]:
    """("a", "b", "c") of the expression a.b.c; empty for any other."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else ()
