"""The labelling page in headless Chromium, by keyboard alone, through kills of its server; narrow, dark and light."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from surefoot.feedback.answers import read_answers
from surefoot.feedback.pairs import read_pairs
from tests.feedback.serving import labelling

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LONG = "averylongwordwithoutanyspace" * 12


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {"prompt": said("system", "Be kind.") + said("user", f"prompt {i} {LONG}"),
         "completion_a": said("assistant", f"A{i} <img src=x onerror=alert(1)> {LONG}"),
         "completion_b": said("assistant", f"B{i}\nsecond line"), "margin_mean": 9.75, "margin_variance": 8.5}
        for i in range(8)
    ]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Visitor:
    """A page that is used by the keyboard alone."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.page = browser.new_page(**settings)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def begin(self, name: str) -> None:
        self.page.keyboard.type(name)  # the field has the focus
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#bar:not([hidden])")

    def shown(self) -> str:
        """The prompt, such as "prompt 3"; "" at the end."""
        if self.page.locator("#pair").is_hidden():
            return ""
        text: str = self.page.locator("#prompt .user").inner_text()
        return " ".join(text.removeprefix("user").split()[:2])

    def press(self, key: str, done: int) -> None:
        """Press a key and wait until so many pairs are answered."""
        self.page.keyboard.press(key)
        self.page.wait_for_selector(f"#status >> text=/^{done} of /")


def test_keyboard_alone_every_answer_and_undo(browser: Any, pairs: Path) -> None:
    file = pairs.with_name("answers.jsonl")
    with labelling(pairs) as (process, address):
        visitor = Visitor(browser, address)
        visitor.begin("ann")
        shown = []
        for done, key in enumerate(["ArrowLeft", "ArrowRight", "t", "s", "Shift+ArrowRight"], start=1):
            shown.append((visitor.shown(), visitor.page.locator("#left").inner_text()))
            visitor.press(key, done)
            assert len(read_answers(file)) == done
        assert [prompt for prompt, _ in shown] == [f"prompt {i}" for i in range(5)]
        visitor.press("u", 4)
        assert visitor.shown() == "prompt 4"
        visitor.press("ArrowLeft", 5)
        held = read_answers(file)
        chosen = [
            answer.choice if answer.choice in ("tie", "skip") else answer.choice == answer.left for answer in held
        ]
        assert chosen == [True, False, "tie", "skip", True]
        assert [answer.strength for answer in held] == [1, 1, 0, 0, 1]
        for answer, (_, left) in zip(held, shown, strict=True):  # the recorded side is the one that was seen
            assert answer.left is not None
            assert f"{answer.left.upper()}" in left.removeprefix("assistant").strip()[:1]
        assert all(answer.seconds is not None and 0 <= answer.seconds < 60 for answer in held)
        html = visitor.page.content()
        assert "9.75" not in html
        assert "8.5" not in html
        assert visitor.page.locator("img").count() == 0  # a reply's markup is shown as text
        for done in (6, 7, 8):
            visitor.press("ArrowRight", done)
        assert visitor.shown() == ""
        assert visitor.page.locator("#end").is_visible()
        assert visitor.complaints == []
        assert all(url.startswith((address.partition("/?")[0], "data:")) for url in visitor.requests)
        visitor.page.close()
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        said = pairs.with_name("said.txt")
        assert (process.exitcode, said.with_suffix(".err").read_text()) == (0, "")
        assert "8 answers by ann: " in said.read_text()


def test_kills_lose_no_answer_and_show_no_pair_twice(browser: Any, pairs: Path) -> None:
    file, seen = pairs.with_name("answers.jsonl"), []
    for visit in range(4):
        with labelling(pairs) as (process, address):
            visitor = Visitor(browser, address)
            visitor.begin("ann")
            assert len(read_answers(file)) == 2 * visit
            for done in (2 * visit + 1, 2 * visit + 2):
                seen.append(visitor.shown())
                visitor.press("ArrowLeft", done)
            process.kill()
            process.join()
            if visit == 1:  # a key that is pressed when nobody listens is no answer, and the page says so
                visitor.page.keyboard.press("ArrowRight")
                visitor.page.wait_for_selector("#status.bad")
                assert "isn't saved" in visitor.page.locator("#status").inner_text()
            visitor.page.close()
    assert seen == [f"prompt {i}" for i in range(8)]
    assert [answer.pair for answer in read_answers(file)] == [pair.id for pair in read_pairs(pairs)]


def test_a_kill_right_after_the_key_leaves_the_answer_or_none_of_it(browser: Any, pairs: Path) -> None:
    file = pairs.with_name("answers.jsonl")
    known = 0
    for _ in range(3):
        with labelling(pairs) as (process, address):
            visitor = Visitor(browser, address)
            visitor.begin("ann")
            assert visitor.shown() == f"prompt {known}"
            visitor.page.keyboard.press("ArrowLeft")
            process.kill()
            process.join()
            visitor.page.close()
        held = read_answers(file)
        assert len(held) in (known, known + 1)
        known = len(held)
        assert [answer.pair for answer in held] == [pair.id for pair in read_pairs(pairs)][:known]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_the_colours_follow_the_scheme(
    scheme: str, browser: Any, pairs: Path
) -> None:
    with labelling(pairs) as (_, address):
        visitor = Visitor(browser, address, viewport={"width": 360, "height": 640}, color_scheme=scheme)
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 360
        visitor.begin("ann")
        page = visitor.page
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        left, right = (page.locator(side).bounding_box() for side in ("#left", "#right"))
        assert left["y"] + left["height"] <= right["y"]  # one below the other
        for button in page.locator("#bar button").all():
            box = button.bounding_box()
            assert box["height"] >= 44  # a fingertip
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
        assert float(page.locator("#left .message").evaluate("e => parseFloat(getComputedStyle(e).fontSize)")) >= 16
        last = page.locator("#right")
        last.evaluate("e => scrollTo(0, document.body.scrollHeight)")
        box, bar = last.bounding_box(), page.locator("#bar").bounding_box()
        assert box["y"] + box["height"] <= bar["y"]  # the buttons hide nothing
        assert _contrast(page, "#left .message") > 7
        assert _contrast(page, "#status") > 4.5
        bright = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128")
        assert bright == (scheme == "light")
        page.close()


def _contrast(page: Any, selector: str) -> float:
    """WCAG's contrast of a text against the nearest background that is painted."""
    value: float = page.locator(selector).first.evaluate(
        """e => {
          const light = colour => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
              .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          let back = e;
          while (/, 0\\)$/.test(getComputedStyle(back).backgroundColor)) back = back.parentElement;
          const [a, b] = [light(getComputedStyle(e).color), light(getComputedStyle(back).backgroundColor)];
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }"""
    )
    return value
