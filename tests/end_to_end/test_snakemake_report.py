"""`snakemake --report` on the smallest configuration: as a page and as an archive, without network."""

import re
import zipfile

import pytest

from tests.conftest import SMALLEST

pytestmark = pytest.mark.slow
# Whoever asks for an address is sent to a port at which nobody listens.
CLOSED = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
CLOSED |= {"no_proxy": "", "NO_PROXY": ""}
CATEGORIES = {"Tables", "Figures", "Claims", "Everything measured", "The page"}


@pytest.fixture(scope="module", params=["html", "zip"])
def report(request, finished, tmp_path_factory):
    """The text of the report, and the names of the files beside it."""
    path = tmp_path_factory.mktemp("report") / f"report.{request.param}"
    finished.snakemake("--configfile", SMALLEST, "--report", str(path), "--", "all", **CLOSED)
    if request.param == "html":
        return path.read_text(encoding="utf-8"), []
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        [page] = [name for name in names if name.count("/") == 1 and name.endswith("report.html")]
        return archive.read(page).decode(), names


def test_results_stand_in_their_categories_with_captions(report):
    text, _ = report
    [categories] = re.findall(r"var categories\s*=\s*(\{.*?\});?\n", text, re.DOTALL)
    assert {name for name in CATEGORIES if f'"{name}"' in categories} == CATEGORIES
    assert '"aside"' in categories, "tables and figures stand under their study"
    for caption in ("a table of the study", "a figure of the study", "headline claims", "one tidy table", "needs no"):
        assert caption in text
    assert "{{" not in "".join(re.findall(r'"caption": "(.*?)"', text)), "a caption is a template that was filled in"
    assert "system-message" not in text, "a caption is no reStructuredText"


def test_the_archive_holds_the_files(report):
    _, names = report
    if names:
        ends = {name.rpartition("/")[2] for name in names}
        assert {"aside_sep.csv", "aside_sep.png", "claims.md", "results.csv", "report.html"} <= ends


def test_nothing_is_fetched_when_it_is_opened(report):
    text, _ = report
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?://", text)
