"""The pages in a real browser: what keys, clicks and pointing show; no errors, no network, no foreign script."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fault_lab.pictures.coverage_page import coverage_page
from fault_lab.pictures.explorer_page import explorer_page
from fault_lab.pictures.lamport import lamport_svg
from fault_lab.pictures.recording import read_recording
from fault_lab.pictures.timeline_page import timeline_page
from tests.pictures.graphs import graph, graph_text
from tests.pictures.runs import HOSTILE, hostile, recorded, violated
from tests.pictures.test_coverage import covered

if TYPE_CHECKING:
    from tests.pictures.browser import Browser

#: Keys as WebDriver has them.
RIGHT, UP, DOWN, HOME, END = "\ue014", "\ue013", "\ue015", "\ue011", "\ue010"
ENTER, ESCAPE, BACKSPACE = "\ue007", "\ue00c", "\ue003"


def show(browser: Browser, tmp_path: Path, text: str, name: str = "page.html") -> None:
    """Write a page and open it."""
    page = tmp_path / name
    page.write_text(text, encoding="utf-8")
    browser.open(page)


@pytest.fixture
def first(browser: Browser, tmp_path: Path) -> Browser:
    """The timeline of the founding failure."""
    show(browser, tmp_path, timeline_page(read_recording(recorded("first"))))
    return browser


def said(browser: Browser) -> str:
    """The record that is looked at."""
    return browser.one("#said").text


def test_a_walk_by_keys(first: Browser) -> None:
    """From the exit to its cause and its effect, across lanes, and to both ends; nothing needs a mouse."""
    first.press(HOME)
    assert said(first) == "0: 0.000 ms, phase chaos"
    first.press(RIGHT * 33)
    assert said(first) == "33: 3.099 ms, fault no-memory at fpstate.realloc.alloc of a/0, hit 1: ENOMEM"
    first.press("c")
    assert said(first).startswith("32: 3.099 ms, SubmitEvents request a -> host")
    first.press("ee")
    assert said(first).startswith("34: 3.099 ms, a/0 is parked, fpstate 2,560 B")
    first.press(UP)
    assert said(first).startswith("30: ")  # the nearest of the guest's lane
    first.press(END)
    assert said(first) == "58: 6.519 ms, phase settle"
    assert first.texts("#effects li") == ["nothing that is shown"]
    assert first.errors() == []


def test_what_led_to_it_is_marked(first: Browser) -> None:
    """The causal cone of the decision: ancestors and descendants, and nothing else; pinned, the others fade."""
    first.press("/", "decides retry", ENTER)
    assert first.one("#found").text == "1 of 59"
    first.press(HOME)
    assert said(first) == "40: 3.923 ms, ctl decides RETRY for exit a/0/1 generation 1"
    causes = [text.split()[0] for text in first.texts("#causes button")]
    assert " ".join(causes) == "39 35 34 33 32 31 30 29 28 27 26 25 24 23 18 17 16 14 10 9 8 7 5 4 3 2 1 0"
    marked = first.js("[...new Set([...document.querySelectorAll('.anc')].map(e => +e.dataset.n))].sort((a,b) => a-b)")
    assert marked == sorted(int(each) for each in causes)
    after = first.js("[...new Set([...document.querySelectorAll('.desc')].map(e => +e.dataset.n))].sort((a,b) => a-b)")
    assert after == [41, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56]
    first.press(ENTER)
    assert first.js("document.getElementById('lanes').classList.contains('pinned')")
    assert first.js("getComputedStyle(document.querySelector('.mark[data-n=\"22\"]')).opacity") == "0.13"
    assert first.js("getComputedStyle(document.querySelector('.mark[data-n=\"35\"]')).opacity") == "1"
    first.press(ESCAPE)
    assert not first.js("document.getElementById('lanes').classList.contains('pinned')")


def test_pointing_and_clicking(first: Browser) -> None:
    """Pointing at a mark shows its record, clicking pins it, and the list of causes leads on."""
    first.hover('.mark.k-fault[data-n="33"]')
    assert said(first).startswith("33: 3.099 ms, fault no-memory")
    fields = dict(zip(first.texts("#fields dt"), first.texts("#fields dd"), strict=True))
    assert fields["point"] == "fpstate.realloc.alloc"
    assert fields["cause"] == "32"
    first.click('.mark.k-exit[data-n="35"]')
    first.hover('.mark.k-fault[data-n="33"]')
    assert said(first).startswith("35: ")  # it is pinned
    first.one("#causes button").click()
    assert said(first).startswith("34: ")


def test_lanes_and_legend(first: Browser) -> None:
    """Who is there with the letters of the founding mail, the strip's scale, what marks mean, and where it is from."""
    assert first.texts("#labels .name") == ["ctl", "host", "a", "a/0"]
    assert first.texts("#labels .letter") == ["U", "H", "G", "G"]
    assert "fpstate, 0 to 10,752 B" in first.texts("#labels .strip-label")
    assert "message lost" in first.one("#legend").text
    assert "seed 1" in first.one("#facts").text
    assert "showing records 0 to 58 of 59" in first.one("#facts").text
    assert first.js("document.querySelectorAll('#lanes .size').length") == 4
    first.press("l")
    assert not first.one("#legend").is_displayed()


def test_zoom_and_time(first: Browser) -> None:
    """Wider, narrower, all of it; by time the same records stand at other places."""
    wide = first.js("+document.getElementById('lanes').getAttribute('width')")
    first.press("+")
    assert first.js("+document.getElementById('lanes').getAttribute('width')") > wide
    first.press("0")
    assert first.js("document.getElementById('lanes').getBoundingClientRect().width <= innerWidth")
    first.press("t")
    assert first.one("#scale").get_attribute("aria-pressed") == "true"
    assert first.js("xOf(at(10)) === xOf(at(9))")  # one moment, one place
    part = first.js("(xOf(at(58)) - xOf(at(35))) / (xOf(at(58)) - xOf(at(0)))")
    assert part == pytest.approx((6519 - 3099) / 6519, abs=1e-3)


def test_help_and_labels(first: Browser) -> None:
    """Keys are listed; every control has a name; the focus is led into the dialog and out of it."""
    first.press("?")
    assert first.one("#help").is_displayed()
    assert "the violation" in first.one("#help").text
    first.press(ESCAPE)
    assert not first.one("#help").is_displayed()
    unnamed = first.js(
        "[...document.querySelectorAll('button, input, [role=application]')]"
        ".filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length"
    )
    assert unnamed == 0
    assert first.js("document.getElementById('said').getAttribute('aria-live')") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(first: Browser, scheme: str) -> None:
    """Text can be told from paper: the contrast is that of WCAG's AAA, 7, or more."""
    first.prefers(scheme)
    ink, paper = (first.js(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert _contrast(ink, paper) >= 7
    assert (_luminance(paper) > 0.5) == (scheme == "light")
    first.prefers("light")


def _luminance(colour: str) -> float:
    """Of ``rgb(r, g, b)``, as WCAG has it."""
    parts = [int(each) / 255 for each in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_violation_is_jumped_to(browser: Browser, tmp_path: Path) -> None:
    """The page opens on it; v comes back to it."""
    show(browser, tmp_path, timeline_page(read_recording(violated())))
    assert "violation of one-decision-a-generation" in said(browser)
    assert "violation of one-decision-a-generation" in browser.one("#facts .bad").text
    line = browser.one(".bands ~ .marks .violation-line").rect
    assert 0 <= line["x"] <= 1600
    opened = said(browser)
    browser.press(HOME)
    assert said(browser).startswith("0: ")
    browser.press("v")
    assert said(browser) == opened
    assert browser.errors() == []


def test_a_partition_is_shaded(browser: Browser, tmp_path: Path) -> None:
    """Both windows of the plan lie over all lanes and say whose they are; paper gets what the screen shows."""
    show(browser, tmp_path, timeline_page(read_recording(recorded("cut-off"))))
    assert browser.js("document.querySelectorAll('#lanes .window').length") == 2
    names = browser.js("[...new Set([...document.querySelectorAll('.window-name')].map(e => e.textContent))]")
    assert names == ["deaf can fire", "cut can fire"]
    assert browser.js("document.querySelectorAll('#lanes .band.held').length") > 0
    browser.press(HOME, RIGHT * 20)
    browser.js("dispatchEvent(new Event('beforeprint'))")
    assert browser.js("+document.getElementById('lanes').getAttribute('width') < innerWidth")
    browser.js("dispatchEvent(new Event('afterprint'))")
    assert browser.js("document.getElementById('lanes').getAttribute('viewBox')") is None
    assert browser.errors() == []


def test_a_storm_is_drawn(browser: Browser, tmp_path: Path) -> None:
    """Down, stopped, parked, lost messages: all of it has its marks; no two texts of a lane lie on each other."""
    show(browser, tmp_path, timeline_page(read_recording(recorded("storm", 3))))
    for selector in (".band.down", ".band.parked", ".arrow.lost", ".k-fault", ".k-decision", ".xfd"):
        assert browser.js(f"document.querySelectorAll('#lanes {selector}').length") > 0, selector
    overlaps = browser.js(
        "(() => { const all = [...document.querySelectorAll('.texts text')].map(e => e.getBoundingClientRect())"
        ".sort((a, b) => a.x - b.x); let n = 0; all.forEach((a, i) => { for (let j = i + 1; j < all.length; j++) {"
        " const b = all[j]; if (b.x >= a.right) break; if (b.y < a.bottom - 3 && a.y < b.bottom - 3) n++; } });"
        " return n; })()"
    )
    assert overlaps == 0
    assert browser.errors() == []


def test_hostile_texts_are_shown_as_texts(browser: Browser, tmp_path: Path) -> None:
    """On every page: the text stands there, nothing of it has run, and no element has come of it."""
    nodes = [{**node, HOSTILE: HOSTILE, "flight": [HOSTILE]} for node in graph()["nodes"]]
    violations = [{**graph()["violations"][0], "check": HOSTILE, "text": HOSTILE}]
    pages = {
        "timeline": timeline_page(read_recording(hostile())),
        "explorer": explorer_page(graph_text(plan=HOSTILE, nodes=nodes, violations=violations)),
    }
    for name, page in pages.items():
        show(browser, tmp_path, page, f"{name}.html")
        assert "onerror" in browser.one("#name").text
        browser.press(HOME, RIGHT, RIGHT, RIGHT, "v")
        assert browser.js("document.querySelectorAll('img').length") == 0
        assert browser.js("document.title") != "taken"
        assert browser.errors() == []
    show(browser, tmp_path, lamport_svg(read_recording(hostile())), "still.svg")
    assert browser.js("document.querySelectorAll('img').length") == 0
    assert browser.errors() == []


def test_a_script_that_got_in_would_not_run(browser: Browser, tmp_path: Path) -> None:
    """The page's policy: only the script whose digest it names."""
    page = timeline_page(read_recording(recorded("first"))).replace(
        "</body>", "<script>document.title='in'</script></body>"
    )
    show(browser, tmp_path, page)
    assert browser.js("document.title") == "first: timeline"
    (error,) = browser.errors()
    assert "Content Security Policy" in error


def test_a_walk_through_states(browser: Browser, tmp_path: Path) -> None:
    """By keys: the action that fails, what it changed, back, and to the violation by its shortest path."""
    show(browser, tmp_path, explorer_page(graph_text()))
    assert said(browser) == "step 0: the initial state; 2 can happen next"
    browser.press("2")
    assert said(browser) == "step 1: [fpstate.realloc.alloc] host: a/0 sends 1 Wrmsr; 1 can happen next"
    assert browser.texts("#state td.changed") == [
        *("PARKED\nwas ENTERED", "vms/a/vcpus/0/exits/1\nwas -", "1\nwas 0"),
    ]
    assert browser.texts("#state li.come") == ["a/0: hears pending", "ctl: hears of exit 1"]
    assert browser.texts("#state li.gone") == ["host: a/0 sends 1 Wrmsr"]
    browser.press(BACKSPACE, "1")
    assert "0x40000 XTILE_DATA" in browser.one("#state .changed .was").text
    browser.press("v")
    assert said(browser).startswith("one-decision-a-generation: RETRY for generation 1 is applied twice, by ")
    assert [text.split()[0] for text in browser.texts("#path button")] == ["0", "1", "2"]
    assert browser.texts("#actions button")[0].startswith("1 violates one-decision-a-generation")
    browser.press(HOME, DOWN, ENTER)
    assert browser.texts("#path button")[-1] == "1 [fpstate.realloc.alloc] host: a/0 sends 1 Wrmsr"
    assert browser.errors() == []


def test_states_are_searched(browser: Browser, tmp_path: Path) -> None:
    """By words; the next one by n, reached by a shortest path; a click on the path goes back there."""
    show(browser, tmp_path, explorer_page(graph_text()))
    browser.press("/", "parked pending", ENTER)
    assert browser.one("#found").text == "2 of 4"
    assert browser.texts("#path button")[-1].startswith("1 [fpstate.realloc.alloc]")
    browser.press("n")
    assert browser.texts("#path button")[-1] == "2 ctl: hears of exit 1"
    browser.click("#path li:first-child button")
    assert said(browser) == "step 0: the initial state; 2 can happen next"


def test_the_matrix(browser: Browser, tmp_path: Path) -> None:
    """Counts, cells that were never reached, reasons; nothing sticks out of the window."""
    show(browser, tmp_path, coverage_page(covered("first", range(1, 4)), "1..3"))
    assert browser.texts("td.s2") == ["3"]
    assert browser.one("td.s2").get_attribute("title") == "fpstate.realloc.alloc, outside, RETRY: 3"
    assert set(browser.texts("td.never")) == {"0"}
    assert "no fault of this plan ends a host" in browser.js("document.querySelectorAll('td.cannot.first')[4].title")
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    assert browser.errors() == []
