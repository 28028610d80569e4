"""The page in headless Chromium: drawn, sorted by mouse and keyboard, narrow and wide, without error or request."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from surefoot.reports.study import build_report
from tests.reports.synthetic import edit_cell, place_of, write_study

pytestmark = [pytest.mark.browser, pytest.mark.slow]
METHODS = ("vanilla", "mean", "lcb", "variance_aware", "one")
GAINS = {"vanilla": [-0.5, 0.25, 0.25], "mean": [0.5, 0.5, 0.5], "lcb": [0.1, 0.1, 0.1],
         "variance_aware": [0.5, 0.75, 1.0], "one": [-0.4, -0.3, -0.2]}  # fmt: skip


@dataclass
class Visit:
    """A page, and what went wrong or out while it was open."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, methods=METHODS, gains=GAINS, seeds=3)
    for seed in range(3):  # a method without any true reward
        edit_cell(folder, place_of("uneven", "heads", "lcb", 6.0, seed), gold_gain=None)
    return build_report(folder)


def visit(browser: Any, report: Path, width: int, scheme: str = "light") -> Visit:
    found = Visit(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme))
    found.page.on("console", lambda message: found.complaints.append(message.text))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto(report.as_uri())
    return found


def column(page: Any, number: int) -> list[str]:
    rows = page.locator("table.sortable").first.locator("tbody tr")
    return [rows.nth(i).locator("th, td").nth(number).inner_text() for i in range(rows.count())]


@pytest.mark.parametrize("width", [360, 1280])
def test_everything_is_drawn_and_nothing_is_wider_than_the_page(browser: Any, report: Path, width: int) -> None:
    found = visit(browser, report, width)
    boxes = found.page.eval_on_selector_all(
        "svg", "all => all.map(one => { const b = one.getBoundingClientRect(); return [b.width, b.height] })"
    )
    assert len(boxes) == 5 + len(METHODS) + 2
    assert min(size for box in boxes for size in box) > 60
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    letters = found.page.eval_on_selector_all(
        "svg text",
        "all => all.map(one => { const m = one.getScreenCTM();"
        " return parseFloat(getComputedStyle(one).fontSize) * Math.hypot(m.a, m.b) })",
    )
    ends = found.page.eval_on_selector_all(
        "figure svg, figure svg text",
        "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])",
    )
    assert min(left for left, _ in ends) >= 0
    assert max(right for _, right in ends) <= width  # whole, without a box to scroll
    assert min(letters) > 8  # pixels: small, and legible on a phone
    assert found.complaints == []
    assert found.requests == [report.as_uri()]


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_a_table_is_sorted_both_ways_and_unknown_stays_last(browser: Any, report: Path, how: str) -> None:
    page = visit(browser, report, 1280).page
    heading = page.locator("table.sortable").first.locator("thead th").nth(4)
    assert heading.inner_text().startswith("mean gain")
    button = heading.locator("button")

    def press() -> None:
        if how == "mouse":
            button.click()
        else:
            button.focus()
            page.keyboard.press("Enter")

    press()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, 0) == ["one", "one reward model", "mean of members", "variance-aware", "LCB"]
    press()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, 0) == ["variance-aware", "mean of members", "one reward model", "one", "LCB"]
    sorted_headings = page.locator("table.sortable").first.locator("th[aria-sort=descending], th[aria-sort=ascending]")
    assert sorted_headings.count() == 1


def test_names_are_sorted_as_words(browser: Any, report: Path) -> None:
    page = visit(browser, report, 1280).page
    page.locator("table.sortable").first.locator("thead button").first.click()
    found = column(page, 0)
    assert found == sorted(found, key=str.lower)


def test_the_keyboard_reaches_every_table_and_every_heading(browser: Any, report: Path) -> None:
    page = visit(browser, report, 390).page
    wanted = page.locator(".box, table.sortable thead button").count()
    reached = set()
    for _ in range(3 * wanted):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "[...document.querySelectorAll('.box, table.sortable thead button')].indexOf(document.activeElement)"
            )
        )
    assert reached - {-1} == set(range(wanted))
    named = page.eval_on_selector_all("svg[role=img]", "all => all.map(one => one.getAttribute('aria-label').length)")
    assert min(named) > 20


def test_a_printed_page_holds_the_widest_table(browser: Any, report: Path) -> None:
    """680 CSS pixels: A4 with margins of 15 mm."""
    page = visit(browser, report, 680).page
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 680


CONTRASTS = """() => {
  const light = text => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255);
    const [r, g, b] = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const against = colour => {
    const l = light(colour);
    return (Math.max(l, ground) + 0.05) / (Math.min(l, ground) + 0.05);
  };
  const letters = [...document.querySelectorAll("main *, svg text")].filter(one => one.innerText || one.textContent);
  return {
    ground: ground,
    letters: Math.min(...letters.map(one => {
      const style = getComputedStyle(one);
      return against(one.tagName === "text" ? style.fill : style.color);
    })),
    shapes: Math.min(...[...document.querySelectorAll("svg circle, svg path[stroke-width]")].map(one => {
      const style = getComputedStyle(one);
      return Math.max(...[style.fill, style.stroke].filter(paint => paint.startsWith("rgb")).map(against));
    }).filter(contrast => contrast > 1.35)),  // but for the grid, which is faint on purpose
  };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_and_curves_stand_out_in_both_schemes(browser: Any, report: Path, scheme: str) -> None:
    """WCAG's contrasts: 4.5 for text, and for what is drawn about 3 (the palette's light colours have 2.2)."""
    page = visit(browser, report, 1280, scheme).page
    found = page.evaluate(CONTRASTS)
    assert (found["ground"] < 0.02) == (scheme == "dark")
    assert found["letters"] >= 4.5
    assert found["shapes"] >= (2.0 if scheme == "light" else 3.0)


def test_a_page_in_the_dark_is_printed_light(browser: Any, report: Path) -> None:
    page = visit(browser, report, 680, "dark").page
    page.emulate_media(media="print", color_scheme="dark")
    found = page.evaluate(CONTRASTS)
    assert found["ground"] > 0.99
    assert page.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == "rgb(107, 107, 114)"  # GREY
    cut = page.eval_on_selector_all(".box", "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).length")
    assert cut == 0


def test_what_is_folded_is_printed(browser: Any, tmp_path: Path) -> None:
    report = build_report(write_study(tmp_path, seeds=2, budgets=(2.0, 4.0, 6.0, 8.0), steps=20))
    page = visit(browser, report, 1280).page
    folded = page.locator("details:not([open])").count()
    assert folded == 4
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded
    page.set_viewport_size({"width": 680, "height": 900})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 680  # the table of all groups too


def test_a_script_from_elsewhere_does_not_run(browser: Any, report: Path, tmp_path: Path) -> None:
    """The page's policy stops what escaping might one day let through."""
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(report.read_text().replace("</main>", "<script>document.title = 'taken'</script></main>"))
    found = visit(browser, spoilt, 1280)
    assert found.page.title() == "a <study>"
    assert any("Content Security Policy" in line for line in found.complaints)
