"""The report in a real browser: it loads without a network or an error, and its controls work.

Needs Chromium and the Python package `playwright`; skipped where either is absent.
"""

import shutil

import pytest
from fake_runs import write_sweep

from fedras_jax import page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("plotly", reason="the extra 'report' is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
if not CHROMIUM:
    pytest.skip("there is no Chromium", allow_module_level=True)

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    here = tmp_path_factory.mktemp("page")
    return page.write(here / "page.html", page.collect(write_sweep(here / "runs"))).as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def opened(browser, address):
    """Opens the page at a width and in a theme; in the end nothing must have been complained of."""
    complaints, contexts = [], []

    def open_(width=1200, theme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=theme, offline=True
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
        tab.on("pageerror", lambda e: complaints.append(str(e)))
        tab.on("request", lambda r: r.url.startswith("http") and complaints.append(r.url))
        tab.goto(address)
        for figure in tab.locator(".figure").all():
            figure.scroll_into_view_if_needed()
            figure.locator(".main-svg").first.wait_for()
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def drawn(tab, name):
    """Number of traces and title of the x axis of a figure."""
    return tab.evaluate(
        "(n) => { const d = document.getElementById(n);"
        " return [d.data.length, d.layout.xaxis.title.text]; }",
        f"g0-{name}",
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_in_either_theme(opened, theme):
    tab = opened(380, theme)
    assert tab.evaluate("document.documentElement.scrollWidth") == 380
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (theme == "dark")


def test_axes_arms_and_theme_are_chosen_by_clicks(opened):
    tab = opened()
    assert drawn(tab, "curves") == [5, "round"]
    tab.locator('[data-for="g0-curves"] [data-axis="x"]').select_option("hours")
    assert drawn(tab, "curves") == [5, "simulated hours"]
    tab.locator(".chip", has_text="sign").click()
    assert drawn(tab, "curves")[0] == 4
    tab.locator('[data-choose="none"]').click()
    assert drawn(tab, "curves")[0] == 0
    tab.locator('[data-choose="first"]').click()
    assert drawn(tab, "curves")[0] == 5
    tab.locator('[data-for="g0-boxes"] select').select_option("seconds")
    assert drawn(tab, "boxes")[1] == "simulated seconds"

    font = "document.getElementById('g0-front').layout.font.color"
    before = tab.evaluate(font)
    tab.locator("#theme").click()
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert tab.evaluate(font) != before


def test_no_button_sends_anything_anywhere(opened):
    tab = opened()
    titles = tab.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)"
    )
    assert set(titles) == {
        *("Download plot as a PNG", "Zoom", "Pan", "Autoscale", "Reset axes"),
    }


def test_tables_are_sorted_and_filtered(opened):
    tab = opened()
    first = tab.locator("table.sortable tbody").first.locator("tr:visible th").first
    tab.locator("thead button", has_text="up B").click()
    assert first.inner_text().startswith("directional")
    tab.locator("thead button", has_text="up B").click()
    assert first.inner_text() == "dense"
    tab.locator(".filter").fill("k=16")
    assert first.inner_text() == "directional k=16, client_lr=0.25"
    assert tab.locator(".chip:visible").count() == 1


def test_hovering_tells_the_arm_and_its_figures(opened):
    tab = opened()
    tab.locator("#g0-curves").scroll_into_view_if_needed()
    spot = tab.evaluate(
        "() => { const d = document.getElementById('g0-curves'), t = d.data[0], l = d._fullLayout;"
        " const r = d.getBoundingClientRect();"
        " return [r.left + l.xaxis._offset + l.xaxis.d2p(t.x[1]),"
        " r.top + l.yaxis._offset + l.yaxis.d2p(t.y[1])]; }"
    )
    tab.mouse.move(*spot)
    label = tab.locator("#g0-curves .hoverlayer .hovertext")
    label.first.wait_for()
    text = label.first.text_content()
    assert "dense" in text
    assert "seeds" in text
