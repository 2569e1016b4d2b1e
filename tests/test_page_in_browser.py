"""The page in a real browser, as a person uses it. Needs Chromium, which Debian's package of this name installs."""

import shutil
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from page_index import COLOURS, SCRIPT, make_index

from proxynca_jax.page.app import make_app
from proxynca_jax.page.guard import LOCAL_NAMES

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture
def address(tmp_path) -> Iterator[str]:
    """Serves an index."""
    app = make_app(make_index(tmp_path), LOCAL_NAMES)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)


def test_search_filter_and_go_back(address, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    faults = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        expect(page.locator("#about")).to_contain_text("6 images, 3 labels")
        status, results, slider = page.locator("#status"), page.locator("#results button"), page.locator("#score")

        content = (tmp_path / "photographs" / SCRIPT / "0.png").read_bytes()
        dropped = page.evaluate_handle(
            """(bytes) => {
                const dropped = new DataTransfer();
                dropped.items.add(new File([new Uint8Array(bytes)], "mine.png", { type: "image/png" }));
                return dropped;
            }""",
            list(content),
        )
        page.dispatch_event("body", "drop", {"dataTransfer": dropped})
        expect(results.first).to_contain_text("1.000")
        expect(results.first).to_contain_text(SCRIPT)  # as text
        assert page.title() == "Search by photograph"
        assert results.first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 320
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert slider.input_value() == "0.25"  # at which one in a hundred is wrong
        expect(page.locator("#score-meaning")).to_contain_text("about 1 in 100")

        slider.focus()
        page.keyboard.press("Home")
        expect(status).to_contain_text("6 similar images")
        for label in COLOURS:
            page.select_option("#label", label)
            expect(status).to_contain_text("2 similar images")
        page.select_option("#label", "plain")
        slider.focus()
        page.keyboard.press("End")
        expect(status).to_contain_text("None of these")
        page.keyboard.press("Home")
        expect(results).to_have_count(2)
        page.select_option("#label", "")
        expect(results).to_have_count(6)

        page.locator("#file").focus()
        for _ in range(3):  # label, slider, first image
            page.keyboard.press("Tab")
        expect(results.first).to_be_focused()
        assert results.first.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        expect(page.locator("#query-text")).to_contain_text("From the index")
        expect(results).to_have_count(5)
        page.go_back()
        expect(page.locator("#query-text")).to_contain_text("Your photograph")
        expect(results).to_have_count(6)
        page.go_back()
        expect(page.locator("#query-text")).to_contain_text("Drop a photograph")
        expect(page.locator("#filters")).to_be_hidden()
        assert faults == []

        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no image"})
        expect(page.locator("#error")).to_contain_text("no photograph that can be read")
        browser.close()
