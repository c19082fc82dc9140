"""The report as a reader sees it: a real browser opens it, clicks, filters, is a phone, is dark; and takes pictures.

Skipped where there is no Chromium, unless BULWARK_REQUIRE_BROWSER=1 says that there has to be one (as .ci/run does).
BULWARK_SCREENSHOTS=folder keeps the pictures.
"""

import io
import json
import os
from pathlib import Path

import pytest
from browser import Browser, program
from PIL import Image
from report_samples import HOSTILE, report_of, respond
from score_samples import sep_record, write_lines

from bulwark.reporting.report import make_report

if program() is None:
    if os.environ.get("BULWARK_REQUIRE_BROWSER") == "1":
        pytest.fail("There is no Chromium. Install it: python tests/helpers/browser.py --install", pytrace=False)
    pytest.skip("there is no Chromium (python tests/helpers/browser.py --install)", allow_module_level=True)

VISIBLE = "(e => e.checkVisibility())"
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of two models, on which models answer with hostile texts."""
    folder = tmp_path_factory.mktemp("page")
    made = report_of(folder, models=("qwen2.5-7b", "mistral-7b-v0.3"), n=12)
    records = [sep_record(index) for index in range(12)]
    for record, text in zip(records, HOSTILE, strict=True):
        record["prompt_instructed"] = record["prompt_clean"] = f"{text[:300]} data"
    write_lines(folder / "data" / "sep" / "12.jsonl", records)
    for given in made["studies"][0]["examples"]:
        respond(given, "base", ["\n".join(HOSTILE[:6])])
        respond(given, "vanilla", ["\n".join(HOSTILE[6:9])])
        respond(given, "aside", HOSTILE[9:])
    make_report(folder / "report.html", **made)
    return folder / "report.html"


@pytest.fixture
def picture(browser, tmp_path):
    """Take a picture, `picture(name)`; it is kept where the variable says, and returned."""

    def take(name: str) -> Image.Image:
        kept = os.environ.get("BULWARK_SCREENSHOTS")
        path = browser.screenshot(Path(kept or tmp_path) / f"{name}.png")
        return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")

    return take


def seen(browser, selector: str) -> list[str]:
    """The texts of the elements that can be seen."""
    return browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].filter{VISIBLE}.map(e => e.innerText.trim())"
    )


def unfold(browser) -> None:
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")


def brightness(image: Image.Image) -> float:
    """Of the page's own colour, at its left edge."""
    return sum(image.getpixel((2, image.height // 2))) / 3


def test_nothing_is_loaded_nothing_is_refused_and_no_hostile_answer_runs(browser, page, picture):
    browser.requests.clear()
    browser.messages.clear()
    browser.dialogs.clear()
    browser.open(page)
    unfold(browser)
    picture("desktop")
    assert {address.split(":")[0] for address in browser.requests} <= {"file", "data", "about"}
    assert [address for address in browser.requests if address.startswith("file")] == [page.as_uri()]
    assert browser.messages == [], "the policy refuses none of the page's own parts, and nothing else tried"
    assert browser.dialogs == [], "an answer opened a window"
    assert browser.evaluate("document.title") == "Bulwark: sample"
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate("document.querySelectorAll('.said *:not(span)').length") == 0, "an answer has no markup"
    assert browser.evaluate("[...document.querySelectorAll('*')].some(e => e.getAttributeNames().some("
                            "n => n.startsWith('on')))") is False  # fmt: skip
    shown = " ".join(seen(browser, ".said"))
    assert "<script>alert('answered')</script>" in shown
    assert "⟨U+202E⟩gnp.exe" in shown


def test_the_policy_refuses_what_an_answer_would_need(browser, page):
    """Even if markup got through: a script that is not the page's own does not run, a picture is not loaded."""
    browser.open(page)
    browser.requests.clear()
    browser.messages.clear()
    browser.evaluate(
        'document.body.insertAdjacentHTML(\'beforeend\', \'<img src="http://127.0.0.1:9/x.png" onerror="stolen=1">'
        '<a id=harm href="javascript:stolen=2">x</a>\');'
        "const s = document.createElement('script'); s.textContent = 'stolen=3'; document.body.append(s);"
        "document.getElementById('harm').click(); typeof stolen"
    )
    assert browser.evaluate("typeof stolen") == "undefined"
    assert browser.refused == [address for address in browser.requests if address.startswith("http")]
    assert len(browser.refused) == 1
    assert sum("Content Security Policy" in message for message in browser.messages) >= 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_scrolls_downwards_only(browser, page, picture, dark):
    browser.open(page, **PHONE, dark=dark)
    picture(f"phone_{'dark' if dark else 'light'}")
    unfold(browser)
    wide = browser.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('.wide, .said, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"
    )
    assert wide == []
    assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    cut = "[...document.querySelectorAll('.said')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert browser.evaluate(cut) == 0, "an answer is read without scrolling sideways, however long its lines are"
    browser.evaluate("document.querySelector('.examples').scrollIntoView()")
    picture(f"phone_examples_{'dark' if dark else 'light'}")
    small = browser.evaluate(
        "[...document.querySelectorAll('p, td, .said, .judged, figcaption')].filter(e => e.checkVisibility()"
        " && parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    assert small == 0, "text too small to read"


def test_a_table_that_is_wider_than_the_phone_scrolls_in_its_own_box(browser, page):
    browser.open(page, **PHONE)
    unfold(browser)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.wide')].filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)"
        ".map(e => [getComputedStyle(e).overflowX, e.getBoundingClientRect().right <= innerWidth])"
    )
    assert boxes, "the list of measurements has nine columns"
    assert all(box == ["auto", True] for box in boxes)


def test_light_and_dark_follow_the_system_until_the_switch_is_used(browser, page, picture):
    browser.open(page, dark=False)
    assert brightness(picture("light")) > 230
    assert seen(browser, "#theme") == ["☾ dark"]
    browser.click("#theme")
    assert brightness(picture("switched")) < 60
    assert seen(browser, "#theme") == ["☀ light"]
    browser.open(page, dark=True)
    assert brightness(picture("dark")) < 60
    browser.click("#theme")
    assert brightness(picture("dark_switched")) > 230


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_contrast(browser, page, dark):
    """WCAG's ratio of text to what is behind it, at least 4.5."""
    browser.open(page, dark=dark)
    unfold(browser)
    poor = browser.evaluate("""(() => {
      const of = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126*r + 0.7152*g + 0.0722*b; };
      const behind = (e) => { for (; e; e = e.parentElement) { const c = of(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
      return [...document.querySelectorAll('p, td, th, h1, h2, h3, h4, h5, span, button, a, label, summary, .said')]
        .filter((e) => e.checkVisibility() && e.innerText.trim()).map((e) => {
          const [a, b] = [light(of(getComputedStyle(e).color)), light(behind(e))];
          return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className || e.tagName]; })
        .filter(([ratio]) => ratio < 4.5).map(([ratio, name]) => `${name} ${ratio.toFixed(2)}`); })()""")
    assert sorted(set(poor)) == []


def test_a_click_on_a_number_says_where_it_comes_from(browser, page, picture):
    browser.open(page)
    assert seen(browser, ".origin") == []
    browser.click("table.grid tbody tr:not(.model) td button")
    [sheet] = seen(browser, ".origin")
    assert sheet.startswith("×")
    assert "sep: base on qwen2.5-7b" in sheet
    assert "records digest" in sheet
    picture("origin")
    browser.click(".origin:popover-open button[popovertarget^=settings]")
    assert any("max_new_tokens" in text for text in seen(browser, ".origin"))
    browser.open(page)
    browser.click(".examples summary")
    browser.click(".answer button")
    assert "sep: base on qwen2.5-7b" in seen(browser, ".origin")[0]


def choose(browser, name: str, value: str) -> None:
    """What a reader chooses or types in the filter."""
    browser.evaluate(
        f"(() => {{ const f = document.querySelector('#filter [name={name}]'); f.value = {json.dumps(value)};"
        "f.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_the_filter_leaves_what_was_asked_for(browser, page, picture):
    browser.open(page)
    unfold(browser)
    assert len(seen(browser, "table.grid tbody tr:not(.model)")) == 8
    choose(browser, "model", "mistral-7b-v0.3")
    assert seen(browser, "table.grid tr.model") == ["mistral-7b-v0.3"]
    assert len(seen(browser, "table.grid tbody tr:not(.model)")) == 4
    assert len(seen(browser, ".group")) == 1
    assert all("mistral" in row for row in seen(browser, ".measured tbody tr"))
    choose(browser, "recipe", "van, ASIDE".lower())
    rows = seen(browser, "table.grid tbody tr:not(.model)")
    assert [row.split("\t")[0] for row in rows] == ["Vanilla", "ASIDE"]
    assert {text.split()[0] for text in seen(browser, ".who")} == {"vanilla", "aside"}
    assert seen(browser, "#filter output") == ["4 of 14 measurements"]
    browser.evaluate("document.querySelector('#filter').scrollIntoView()")
    picture("filtered")
    browser.evaluate("document.querySelector('.examples').scrollIntoView()")
    picture("filtered_examples")
    address = browser.evaluate("location.href")
    browser.open(address)
    unfold(browser)
    assert len(seen(browser, "table.grid tbody tr:not(.model)")) == 2, "the address keeps what was chosen"
    browser.click("#everything")
    assert len(seen(browser, "table.grid tbody tr:not(.model)")) == 8
    assert browser.evaluate("location.hash") == ""


def test_a_filter_that_nothing_passes_leaves_no_headings_behind(browser, page):
    browser.open(page)
    unfold(browser)
    choose(browser, "recipe", "no such recipe")
    for selector in ("table", ".group", ".claim", "figure", "h2", "h3"):
        assert seen(browser, selector) == []
    assert seen(browser, "#filter output") == ["0 of 14 measurements"]
    choose(browser, "recipe", "")
    assert seen(browser, "h2")


def test_a_benchmark_hides_the_columns_of_others(browser, page):
    browser.open(page)
    browser.evaluate("""document.querySelector('[data-column]').dataset.column = 'another';
      document.querySelector('#filter [name=benchmark]').add(new Option('another'));""")
    heads = seen(browser, "table.grid thead th")
    choose(browser, "benchmark", "another")
    assert seen(browser, "table.grid thead th") == heads[:2]
    assert {row.count("\t") for row in seen(browser, "table.grid tbody tr:not(.model)")} == {1}
    assert seen(browser, "figure") == []
    choose(browser, "benchmark", "sep")
    assert seen(browser, "table.grid thead th") == [heads[0], *heads[2:]]


def test_without_scripts_everything_is_there(browser, page):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert seen(browser, "#filter") == []
        assert seen(browser, "#theme") == []
        assert len(seen(browser, "table.grid tbody tr:not(.model)")) == 8
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
