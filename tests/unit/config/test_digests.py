"""Digests of code: what decides that something is computed again."""

import re
import shutil
from pathlib import Path

import pytest

import bulwark
from bulwark.config import digests, plan
from bulwark.config.digests import UNTRACKED, Package
from bulwark.errors import ConfigurationError

SOURCE = Path(bulwark.__file__).parent
PACKAGE = Package(SOURCE)

FILES = {
    "__init__.py": "",
    "methods/__init__.py": "",
    "methods/one.py": '''"""A method."""
import math as numbers
from typing import TYPE_CHECKING
from house.tools import scaled
from house import errors, rooms

if TYPE_CHECKING:
    from house.types import Batch

WORDS = ("a", "b")

def prompts(record: "Batch") -> list:
    """Make prompts."""
    return [_asked(word) for word in WORDS]

def _asked(word):
    log.info("asked %s", word)
    return word + "?"

def score(answer):
    from house.lazy import length
    if not answer:
        raise errors.OurError("nothing to score")
    return scaled(length(answer)) + rooms.size() + numbers.floor(1.5)

class Kind:
    scale: int = 3

    def prompts(self):
        return _asked("c")

    def score(self):
        return scaled(self.scale)
''',
    "tools.py": "FACTOR = 2\n\ndef scaled(x):\n    return FACTOR * x\n\ndef unused(x):\n    return x\n",
    "lazy.py": "from house.deep import measured as length\n",
    "deep.py": "def measured(x):\n    return len(x)\n",
    "rooms.py": "SIZES = {}\nSIZES['a'] = 1\n\ndef size():\n    return SIZES['a']\n",
    "errors.py": "class OurError(Exception):\n    pass\n",
    "types.py": "class Batch:\n    pass\n",
    "shown/__init__.py": "",
    "shown/page.py": "from pathlib import Path\n\ndef page():\n    return Path(__file__)\n\ndef bare():\n    pass\n",
    "shown/page.css": "a {color: red}",
    "shown/parts/row.html.jinja": "<tr>",
}
METHOD = "house.methods.one"
REPORT, TABLE = "bulwark.reporting.report:make_report", "bulwark.reporting.tables:make_table"


@pytest.fixture
def digest(tmp_path):
    folder = tmp_path / "house"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def of(*roots, change=None, without=()):
        """The digest; change: (file, old text, new text), for this once."""
        if change:
            file, old, new = change
            assert old in FILES[file]
            (folder / file).write_text(FILES[file].replace(old, new))
        found = Package(folder).digest(roots, frozenset(without))
        if change:
            (folder / file).write_text(FILES[file])
        return found

    return of


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("methods/one.py", '"""Make prompts."""', '"""Say more."""  # and a remark'),
        ("methods/one.py", "\n\ndef score", "\n\n\n\ndef score"),
        ("methods/one.py", "asked %s", "it was asked: %s"),
        ("methods/one.py", "nothing to score", "there is no answer"),
        ("methods/one.py", " -> list:", " -> tuple:"),
        ("tools.py", "def unused(x):\n    return x", "def unused(x):\n    return -x"),
        ("types.py", "pass", "size = 1"),
    ],
)
def test_what_cannot_change_a_result_does_not_count(digest, file, old, new):
    assert digest(METHOD) == digest(METHOD, change=(file, old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("methods/one.py", '"?"', '"!"'),
        ("methods/one.py", "import math as", "import cmath as"),
        ("tools.py", "FACTOR = 2", "FACTOR = 3"),
        ("deep.py", "len(x)", "len(x) + 1"),
        ("rooms.py", "SIZES['a'] = 1", "SIZES['a'] = 2"),
    ],
)
def test_code_counts_wherever_it_is_imported_from(digest, file, old, new):
    assert digest(METHOD) != digest(METHOD, change=(file, old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"), [("shown/page.css", "red", "blue"), ("shown/parts/row.html.jinja", "<tr>", "<tr>\n")]
)
def test_what_code_reads_beside_itself_counts(digest, file, old, new):
    """Styles and templates: of a definition that looks for its own file, and of no other."""
    page, bare = "house.shown.page:page", "house.shown.page:bare"
    assert digest(page) != digest(page, change=(file, old, new))
    assert digest(bare) == digest(bare, change=(file, old, new))
    assert digest(METHOD) == digest(METHOD, change=(file, old, new))


def test_the_report_is_made_again_when_a_file_of_its_page_changes(tmp_path):
    folder = tmp_path / "bulwark"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    seen = {Package(folder).digest((REPORT,), frozenset())}
    table = Package(folder).digest((TABLE,), frozenset())
    for number, file in enumerate(("report.css", "report.js", "report.html.jinja", "page/tree.svg.jinja"), start=2):
        (folder / "reporting" / file).write_text("changed", encoding="utf-8")
        seen.add(Package(folder).digest((REPORT,), frozenset()))
        assert len(seen) == number, file
    assert Package(folder).digest((TABLE,), frozenset()) == table


@pytest.mark.parametrize(
    ("old", "new"), [('"?"', '"!"'), ('("a", "b")', '("a",)'), ("[_asked(word)", "[word or _asked(word)")]
)
def test_with_roots_only_what_they_use_counts(digest, old, new):
    root = f"{METHOD}:prompts"
    assert digest(root) != digest(root, change=("methods/one.py", old, new))
    assert digest(root) == digest(root, change=("methods/one.py", "numbers.floor", "numbers.ceil"))
    assert digest(root) == digest(root, change=("tools.py", "FACTOR = 2", "FACTOR = 3"))


def test_members_of_classes_can_be_left_out(digest):
    root, change = f"{METHOD}:Kind", ("tools.py", "FACTOR = 2", "FACTOR = 3")
    assert digest(root) != digest(root, change=change)
    assert digest(root, without=["score"]) == digest(root, without=["score"], change=change)
    asked = ("methods/one.py", '"?"', '"!"')
    assert digest(root, without=["score"]) != digest(root, without=["score"], change=asked)


def test_unknown_modules_and_names_are_errors(digest):
    for root in ("house.nowhere", f"{METHOD}:nothing"):
        with pytest.raises(ConfigurationError, match=root.split(":")[-1]):
            digest(root)


def covered(*roots):
    """{module: definitions} of the package itself."""
    found = {}
    for module, name in PACKAGE.covered(*roots):
        found.setdefault(module, set()).add(name)
    return found


@pytest.mark.parametrize(
    ("step", "module", "name"),
    [
        ("aside", "bulwark.models.embeddings", "RoleEmbedding"),
        ("aside", "bulwark.training.loop", "train"),
        ("aside", "bulwark.training.engine", "backward"),
        ("steer", "bulwark.steering.vectors.fusion", "fuse"),
        ("steer", "bulwark.steering.embedded", "EmbeddedIntervention"),
        ("delta_loss", "bulwark.steering.screening.policies", "DeltaLoss"),
        ("idp", "bulwark.training.displacement", "Displacement"),
        ("heretic", "bulwark.evaluation.statistics", "wilson"),
        ("heretic", "bulwark.abliteration.search.pareto", "hypervolume"),
        ("heretic", "bulwark.models.generation", "generate"),
    ],
)
def test_a_step_depends_on_the_code_of_its_method(step, module, name):
    assert name in covered(*digests.step_roots(step))[module]


def test_no_step_depends_on_what_cannot_change_a_result():
    for path in (SOURCE / "steps").glob("[a-z]*.py"):
        for module in covered(*digests.step_roots(path.stem)):
            room = module.split(".")[1]
            assert not any(module == name or module.startswith(f"{name}.") for name in UNTRACKED)
            assert room not in ("reporting", "config", "benchmarks", "analyses", "cli")


def test_an_attack_does_not_depend_on_the_training_loop():
    assert "bulwark.training.loop" not in covered(*digests.step_roots("heretic"))


def test_a_snapshot_depends_on_the_code_that_makes_it_and_on_nothing_that_is_only_recorded(edited):
    module = "training/saved/snapshots.py"
    for old, new in (('f"{SNAPSHOTS}/{step}/"', 'f"{SNAPSHOTS}/{step + 1}/"'), ('"kind": made["kind"]', '"kind": "x"')):
        assert edited(plan.snapshot_code, None) != edited(plan.snapshot_code, None, change=(module, old, new))
    for told in ("def provenance(", "def open_manifest("):
        change = ("models/manifests.py", told, f"{told}*given, more=0):\n    return {{}}\n\n\ndef _before(")
        assert edited(plan.snapshot_code, None) == edited(plan.snapshot_code, None, change=change)
    assert covered(digests.SNAPSHOT).keys() == {"bulwark.training.saved.snapshots"}


def test_every_rule_whose_jobs_compute_something_says_by_which_code():
    """Those that do not only fetch, adopt or point to what is there; records have the digest in their recipe."""
    without = {"download_dataset", "prepare_dataset", "download_model", "adopt_model", "start_recipe"}
    rules = "".join(path.read_text(encoding="utf-8") for path in (SOURCE.parents[1] / "workflow/rules").glob("*.smk"))
    decided = {}
    for found in re.finditer(r'\bdecided\(\s*"(\w+)"', rules):
        end, depth = found.end(), 1
        while depth:  # to the parenthesis that closes it
            depth += {"(": 1, ")": -1}.get(rules[end], 0)
            end += 1
        decided[found[1]] = rules[found.end() : end]
    assert {"apply_step", "take_snapshot", "make_figure"} <= decided.keys()
    assert {rule for rule, params in decided.items() if "code=" not in params} == without


def test_every_untracked_name_is_a_module():
    for name in UNTRACKED:
        assert PACKAGE.module(name) is not None, name


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Digests of a copy of the package in which one text is replaced."""
    folder = tmp_path / "bulwark"

    def of(function, *arguments, change=None):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        if change:
            file, old, new = change
            text = (folder / file).read_text(encoding="utf-8")
            assert old in text
            (folder / file).write_text(text.replace(old, new), encoding="utf-8")
        package = Package(folder)
        monkeypatch.setattr(digests, "_package", lambda: package)
        return function(*arguments)

    return of


def test_answers_do_not_depend_on_how_they_are_scored(edited):
    scoring = (
        "evaluation/statistics.py",
        "def mean_and_error(",
        "def mean_and_error(values, *, extra=0):\n    pass\n\n\ndef other(",
    )
    assert edited(digests.answers_digest, "sep") == edited(digests.answers_digest, "sep", change=scoring)
    assert edited(digests.scores_digest, "sep", None) != edited(digests.scores_digest, "sep", None, change=scoring)
    asking = ("prompts/builder.py", "IGNORED = -100", "IGNORED = -101")
    assert edited(digests.answers_digest, "sep") != edited(digests.answers_digest, "sep", change=asking)
    assert edited(digests.scores_digest, "sep", None) == edited(digests.scores_digest, "sep", None, change=asking)


def test_answers_do_not_depend_on_which_records_ask_for_one_fact(edited):
    change = ("benchmarks/cloze.py", "return record.fact", "return record.fact or record.id")
    assert edited(digests.answers_digest, "cloze") == edited(digests.answers_digest, "cloze", change=change)
    assert edited(digests.scores_digest, "cloze", None) != edited(digests.scores_digest, "cloze", None, change=change)


def test_scores_depend_on_the_judge_that_is_asked(edited):
    rubric = ("judges/rubrics.py", "RUBRICS = ", "RUBRICS = {} or ")
    for kind, depends in (("openai", True), ("marker", False)):
        same = edited(digests.scores_digest, "safety", kind) == edited(
            digests.scores_digest, "safety", kind, change=rubric
        )
        assert same is not depends


def test_a_figure_depends_on_its_own_kind(edited):
    change = ("reporting/figures/roc.py", "def draw(", "SIZE = 1\n\n\ndef draw(")
    assert edited(digests.figure_digest, "roc") != edited(digests.figure_digest, "roc", change=change)
    assert edited(digests.figure_digest, "bars") == edited(digests.figure_digest, "bars", change=change)


PROMPTED = {
    "answers": (digests.answers_digest, "sep"),
    "training": (digests.code_digest, *digests.step_roots("aside")),
    "an attack": (digests.code_digest, *digests.step_roots("heretic")),
    "contrasts": (digests.code_digest, "bulwark.steering.vectors.pairs:generate_pairs"),
    "projections": (digests.code_digest, "bulwark.steering.vectors.projections:project"),
}


@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("prompts/builder.py", "_settle_roles"),
        ("prompts/chat.py", "_stripped"),
        ("prompts/tokenisation.py", "_touched"),
    ],
)
def test_code_that_changes_a_prompts_meaning_makes_all_that_reads_prompts_again(edited, file, function):
    change = (file, f"def {function}(", f"def {function}(*given):\n    return None\n\n\ndef _before(")
    for what, (digest, *arguments) in PROMPTED.items():
        assert edited(digest, *arguments) != edited(digest, *arguments, change=change), what
