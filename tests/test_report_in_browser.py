"""The report in a real browser, from disk. Needs Chromium, which Debian's package of this name installs."""

import contextlib
import pathlib
import re
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import report_runs
from report_runs import SCRIPT

from proxynca_jax.report.__main__ import main
from proxynca_jax.report.run_page import plots
from proxynca_jax.report.run_page.pictures import Pictures
from proxynca_jax.report.run_page.render import render

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
WIDTHS = 400, 1280  # pixels
# Where the page has the first point of its map, in pixels of the window.
FIRST_POINT = """() => {
    for (const view of Bokeh.index.roots) {
        const drawn = view.model.renderers.find((renderer) => renderer.data_source.name === "map");
        if (!drawn) continue;
        view.el.scrollIntoView({ block: "center" });
        const box = view.el.getBoundingClientRect(), { x, y } = drawn.data_source.data, frame = view.frame;
        return [box.left + frame.x_scale.compute(x[0]), box.top + frame.y_scale.compute(y[0])];
    }
}"""


@contextlib.contextmanager
def opened(path: pathlib.Path, width: int) -> Iterator:
    """Opens a page from disk. At the end nothing was loaded, and the console has no error."""
    from playwright.sync_api import sync_playwright

    faults = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        page.wait_for_function("Bokeh.index.roots.length > 0")
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") == width
        browser.close()
    assert faults == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of two runs and their pages."""
    folder = tmp_path_factory.mktemp("report")
    root = report_runs.draw_images(folder)
    report_runs.train_tiny(root, folder / "first")
    report_runs.train_tiny(root, folder / "second", seed=1, epochs=0)
    main([str(folder / "first")])
    main([str(folder / "first"), str(folder / "second")])
    return folder


@pytest.mark.parametrize("width", WIDTHS)
def test_filter_sort_and_hover(folder, width):
    from playwright.sync_api import expect

    with opened(folder / "first" / "report.html", width) as page:
        assert page.title().startswith("first: R@1")
        rows = page.locator(".row[data-outcome]:visible")
        total = rows.count()
        expect(page.locator("#filter-status")).to_have_text(f"{total} of the {total} queries on this page")
        natural = "images => images.every(image => image.decode().then(() => image.naturalWidth > 0))"
        assert page.locator("img[data-picture]").evaluate_all(natural)

        page.select_option("#filter-outcome", "wrong")
        wrong = rows.count()
        assert 0 < wrong < total
        expect(page.locator(".row[data-outcome=right]:visible")).to_have_count(0)
        page.fill("#filter-class", "<SCRIPT")
        assert {row.get_attribute("data-class") for row in rows.all()} == {SCRIPT}
        expect(page.locator("#class-table tbody tr:visible")).to_have_count(1)
        dimmed = "Bokeh.documents.map(d => d.get_model_by_name('map')).find(s => s).data.alpha"
        assert np.mean([alpha > 0.5 for alpha in page.evaluate(f"[...{dimmed}]")]) < 0.2
        page.select_option("#filter-outcome", "")
        page.fill("#filter-class", "")
        expect(rows).to_have_count(total)

        heading = page.locator("#class-table th", has_text="MAP@R")
        for order in ("descending", "ascending"):
            heading.locator("button").click()
            expect(heading).to_have_attribute("aria-sort", order)
            column = page.locator("#class-table tbody td:nth-child(4)").all_inner_texts()
            assert list(map(float, column)) == sorted(map(float, column), reverse=order == "descending")

        place = page.evaluate(FIRST_POINT)
        page.mouse.move(*place)
        picture = page.locator(".hover img").first
        expect(picture).to_have_attribute("src", re.compile("^data:image/jpeg;base64,"))
        expect(page.locator(".hover").first).to_contain_text(SCRIPT)  # as text


@pytest.mark.parametrize("width", WIDTHS)
def test_headings_do_not_break_inside_words(folder, width):
    with opened(folder / "first" / "report.html", width) as page:
        heights = page.locator("#class-table th button").evaluate_all("all => all.map(one => one.clientHeight)")
        assert max(heights) < 50


@pytest.mark.parametrize("width", WIDTHS)
def test_two_runs_filter_by_who_is_right(folder, width):
    from playwright.sync_api import expect

    with opened(folder / "first" / "report-second.html", width) as page:
        assert page.title() == "first and second"
        page.select_option("#filter-outcome", label="only first is right")
        first = page.locator(".row[data-outcome=first]")
        assert first.count() > 0
        expect(first.first).to_contain_text("first: right")
        expect(first.first).to_contain_text("second: wrong")
        expect(page.locator(".row[data-outcome=second]:visible")).to_have_count(0)


def test_names_that_end_a_script(tmp_path):
    name = "</script><script>document.title = 'broken'</script><img src=x onerror=alert(1)>"
    chart = plots.embedding_map(
        np.eye(3, 2, dtype=np.float32),
        np.arange(3),
        np.ones(3, bool),
        names=[name] * 3,
        files=[name] * 3,
        pictures=[""] * 3,
    )
    fields = {"names": [name, name], "total": 1, "recalls": [1, 2], "gain": 1, "interval": (0, 2), "differing": []}
    fields |= {"counts": dict.fromkeys(("first", "second", "both", "neither"), 0), "settings": [(name, name, name)]}
    row = {"name": name, "images": 1, "recalls": (1, 2), "gain": 1}
    page = render("two_runs.html", Pictures(), {"classes": [chart]}, classes=[row], states=[name, name], **fields)
    (tmp_path / "page.html").write_text(page)
    with opened(tmp_path / "page.html", 1280) as page:
        assert page.title() == f"{name} and {name}"
        page.mouse.move(*page.evaluate(FIRST_POINT))
        page.locator(".hover").first.wait_for()
        assert name in page.locator(".hover").first.inner_text()
