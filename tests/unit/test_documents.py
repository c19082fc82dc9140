"""The pages that people read: their lines are short, their links lead somewhere, and what they name exists."""

import ast
import importlib.util
import itertools
import re
from pathlib import Path

import pytest
from test_architecture import ROOMS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "bulwark"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

FENCE = re.compile(r"^```.*?^```$\n?", re.MULTILINE | re.DOTALL)
READ = {".py", ".md", ".yaml", ".smk", ".sh"}  # files that people read
FOLDERS = "src|tests|config|workflow|profiles|bench|docs"  # what a path in a page begins with


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def section(page: Path, heading: str) -> str:
    """The text under `## heading`, to the next heading of that level."""
    return page.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table without its two heading lines; backticks are taken off."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def expanded(path: str) -> list[str]:
    """`a/{b,c}.d` as a/b.d and a/c.d."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def paths_in(tree: str) -> list[str]:
    """The paths of a tree, one or several on a line, indented below their folder; two spaces begin a comment."""
    folders: list[tuple[int, str]] = []
    found: list[str] = []
    for line in filter(None, tree.splitlines()):
        indent = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}", line.strip())[0].split(" ")
        folders = [folder for folder in folders if folder[0] < indent]
        inside = folders[-1][1] + "/" if folders else ""
        found += [inside + path for name in names for path in expanded(name)]
        folders.append((indent, inside + names[0]))
    return found


def anchors(page: Path) -> set[str]:
    """What `#…` can name in a page: its headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_lines_are_at_most_100_characters_long(page):
    """Tables and code cannot be wrapped, nor can the address of a link."""
    lines = [line for line in prose(page).splitlines() if not line.startswith("|")]
    assert not [line for line in lines if len(re.sub(r"\]\([^)]*\)", "]", line)) > 100]


@each_page
def test_tables_have_as_many_cells_in_every_row(page):
    tables = re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE)
    cells = [{len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} for table in tables]
    assert [number for number in cells if len(number) > 1] == []


@each_page
def test_relative_links_lead_to_files_and_headings(page):
    links = re.findall(r"\]\(([^)]+)\)", prose(page))
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def is_defined(name: str) -> bool:
    """Whether a dotted name is a module, or is defined in one."""
    module, _, member = name.rpartition(".")
    try:
        if importlib.util.find_spec(name):
            return True
    except ModuleNotFoundError:  # the outer name is not a package
        pass
    spec = importlib.util.find_spec(module)
    return bool(spec and re.search(rf"^(def|class) {member}\b", Path(spec.origin).read_text(encoding="utf-8"), re.M))


@each_page
def test_paths_and_modules_in_the_text_exist(page):
    """Paths below the repository's top folder or below src/bulwark; those with a placeholder in them are left out."""
    names = [name for name in re.findall(r"`([^`\n]+)`", prose(page)) if not set(name) & set("<>*… ")]
    pattern = rf"({FOLDERS})/|(?!results/)[\w{{}},/-]+/[\w{{}},-]+\.(py|md|yaml|smk)$"
    written = [name for name in names if re.match(pattern, name)]
    paths = [path for name in written for path in expanded(name)]
    assert not [path for path in paths if not (ROOT / path).exists() and not (PACKAGE / path).exists()]
    assert not [name for name in names if re.fullmatch(r"bulwark(\.\w+)+", name) and not is_defined(name)]


@pytest.mark.parametrize("page", [ROOT / "README.md", ARCHITECTURE], ids=lambda page: page.name)
def test_the_trees_show_what_exists(page):
    paths = paths_in(re.search(r"```\n(.*?)```", section(page, "The tree"), re.DOTALL)[1])
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_readme_shows_every_room():
    shown = paths_in(re.search(r"```\n(.*?)```", section(ROOT / "README.md", "The tree"), re.DOTALL)[1])
    rooms = [path.removeprefix("src/bulwark/") for path in shown if path.startswith("src/bulwark/")]
    assert sorted(room.removesuffix(".py") for room in rooms) == sorted(ROOMS)


def test_the_rooms_stand_in_the_order_of_their_imports():
    shown = [row[0] for row in rows(section(ARCHITECTURE, "The rooms of the library"))]
    assert [name.removesuffix("/").removesuffix(".py") for name in shown] == ROOMS
    assert not [name for name in shown if (PACKAGE / name).is_dir() != name.endswith("/")]


def test_what_can_be_looked_up_is_there():
    def defines(body: list[ast.stmt], names: list[str]) -> bool:
        found = [node for node in body if getattr(node, "name", None) == names[0]]
        return bool(found) and (len(names) == 1 or defines(found[0].body, names[1:]))

    listed = rows(section(ARCHITECTURE, "Where to find what"))
    missing = [
        (path, name)
        for _, path, name in listed
        if not defines(ast.parse((PACKAGE / path).read_text(encoding="utf-8")).body, name.split("."))
    ]
    assert len(listed) > 10
    assert not missing


def test_nothing_refers_to_documents_that_are_not_here():
    """Numbers of a specification, of an issue or of an acceptance test say nothing to a reader of the repository."""
    absent = re.compile(r"\bspec [A-J]\b|\bF-\d|\bacceptance test \d|\bissue \d")
    folders = ["src", "tests", "config", "workflow", "bench", "docs", "profiles"]
    files = [ROOT / "README.md", ROOT / "Snakefile", ROOT / "Makefile"]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in READ]
    assert len(files) > 300
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if absent.search(line)
    ]
    assert not lines, "\n".join(lines)
