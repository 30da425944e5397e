"""report.html in headless Chromium: the slider moves the picture, and nothing is fetched from elsewhere.

The browser is Debian's; the driver's path is given, so that Selenium downloads none. Where there is no
browser these tests are skipped, but under CI=true they fail: CI would else test nothing.
"""

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from attractor.lab.show import page

Scenes = list[dict[str, Any]]
ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1000,1200",
)
PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
MISSING = [name for name, path in PROGRAMS.items() if path is None]
HOW = f"report.html needs {' and '.join(MISSING)} to be tested: apt-get install chromium chromium-driver"
# `skip` for the module, and not `skipif`: pytest then says it once, and trains no run that none looks at
pytestmark = [pytest.mark.skip(HOW)] if MISSING and os.environ.get("CI") != "true" else []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for all tests here."""
    if MISSING:
        pytest.fail(f"{HOW}; under CI=true these tests are not skipped")
    options = Options()
    options.binary_location = PROGRAMS["chromium"]
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(PROGRAMS["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Chrome, trained) -> Chrome:
    """The page of the trained run, as it opens."""
    return visit(browser, trained.path / "report.html")


def visit(browser: Chrome, path: Path) -> Chrome:
    """Open a page; what was logged before is forgotten."""
    for kind in ("performance", "browser"):
        browser.get_log(kind)
    browser.get(path.as_uri())
    return browser


def requested(browser: Chrome) -> list[str]:
    """Addresses that the network layer was asked for since `visit`.

    Those inside the page are left out, and those of the browser's own first page, which may load late.
    """
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "chrome:"))]


def pixels(browser: Chrome, canvas: str) -> np.ndarray:
    """Grey levels of a canvas, (side, side)."""
    script = """
        const canvas = document.querySelector(arguments[0]);
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.width, Array.from(data.filter((_, index) => index % 4 === 0))];
    """
    side, levels = browser.execute_script(script, canvas)
    return np.array(levels).reshape(side, side)


@pytest.fixture
def scenes(trained, read_scenes, read_sheet) -> Scenes:
    """What the slider of the page moves over, with the pixels of the sheets."""
    return [scene | {"pixels": read_sheet(scene["sheet"])} for scene in read_scenes(trained.path)]


def cut(scene: dict[str, Any], *, row: int, example: int = 0) -> np.ndarray:
    """One image of a sheet."""
    side = scene["side"]
    return scene["pixels"][row * side : (row + 1) * side, example * side : (example + 1) * side]


def move(browser: Chrome, t: int) -> None:
    """Drag the slider to t, which is its place in a page that has every t."""
    script = """
        const slider = document.getElementById("slider");
        slider.value = arguments[0];
        slider.dispatchEvent(new Event("input"));
    """
    browser.execute_script(script, t)


def now(browser: Chrome) -> int:
    return int(browser.find_element(By.ID, "now").text)


def test_the_slider_moves_the_picture(opened: Chrome, scenes: Scenes) -> None:
    """At each t the canvas shows, pixel for pixel, the state that the sheet holds; t = 0 and 5 differ.

    The one thing the viewer is for: a picture that stands still, or is off by one, shows no memory.
    """
    scene = scenes[0]
    np.testing.assert_array_equal(pixels(opened, "#original"), cut(scene, row=0))
    np.testing.assert_array_equal(pixels(opened, "#corrupted"), cut(scene, row=1))
    pictures = {}
    for t in (0, 5, 6):
        move(opened, t)
        pictures[t] = pixels(opened, "#state")
        np.testing.assert_array_equal(pictures[t], cut(scene, row=t + 1))
        assert now(opened) == t
        said = opened.find_element(By.ID, "said").text
        assert f"error of this image {scene['errors'][0][t]:.4f}, mean of 9 test images" in said
        assert said.endswith(f"{scene['mean'][t]:.4f}")
        assert opened.find_element(By.ID, "slider").get_attribute("aria-valuetext") == f"t = {t}"
    assert (pictures[0] != pictures[5]).mean() > 0.1


def test_the_keyboard_is_enough(opened: Chrome, scenes: Scenes) -> None:
    """Arrow keys step t by one, Home and End go to 0 and T, another example and task are chosen by keys."""
    scene, *_ = scenes
    slider = opened.find_element(By.ID, "slider")
    assert now(opened) == scene["chosen"]
    for key, t in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1)):
        slider.send_keys(key)
        assert now(opened) == t
        np.testing.assert_array_equal(pixels(opened, "#state"), cut(scene, row=t + 1))
    slider.send_keys(Keys.END)
    assert now(opened) == 6
    opened.find_element(By.CSS_SELECTOR, "#examples input").send_keys(Keys.ARROW_RIGHT)
    np.testing.assert_array_equal(pixels(opened, "#state"), cut(scene, row=7, example=1))
    opened.find_element(By.CSS_SELECTOR, "#tasks input").send_keys(Keys.ARROW_RIGHT)
    WebDriverWait(opened, 10).until(lambda b: b.find_element(By.ID, "how").text.startswith("denoising"))


def test_every_row_has_its_states(opened: Chrome, scenes: Scenes) -> None:
    """Task, row and example choose a picture; t stays, so that one t can be compared between rows."""
    _, plain, evidence = scenes
    move(opened, 3)
    opened.find_elements(By.CSS_SELECTOR, "#tasks label")[1].click()
    for scene in (plain, evidence):
        Select(opened.find_element(By.ID, "row")).select_by_visible_text(scene["row"])
        text = f"denoising, {scene['row']}: {scene['how']}"
        WebDriverWait(opened, 10).until(lambda b, text=text: b.find_element(By.ID, "how").text == text)
        for example, label in enumerate(opened.find_elements(By.CSS_SELECTOR, "#examples label")):
            label.click()
            np.testing.assert_array_equal(pixels(opened, "#state"), cut(scene, row=4, example=example))
            np.testing.assert_array_equal(
                pixels(opened, f"#examples label:nth-of-type({example + 1}) canvas"),
                cut(scene, row=4, example=example),
            )
            assert label.text == f"{scene['errors'][example][3]:.4f}"
    opened.find_element(By.ID, "best").click()
    assert now(opened) == evidence["chosen"]
    assert "chosen on validation images" in opened.find_element(By.ID, "said").text


def test_the_row_stays_when_the_task_changes(browser: Chrome, trained, read_scenes, tmp_path: Path) -> None:
    """The run that is looked at in one task is looked at in the other, where it has that row."""
    masked, *denoise = read_scenes(trained.path)
    several = [masked, masked | {"row": denoise[1]["row"]}, *denoise]
    text = (trained.path / "report.html").read_text(encoding="utf-8")
    head, opening, rest = text.partition('<script type="application/json" id="scenes">')
    path = tmp_path / "several.html"
    path.write_text(head + opening + json.dumps(several) + rest[rest.index("</script>") :])
    visit(browser, path)
    select = Select(browser.find_element(By.ID, "row"))
    select.select_by_visible_text(denoise[1]["row"])
    for label in reversed(browser.find_elements(By.CSS_SELECTOR, "#tasks label")):
        label.click()
        assert select.first_selected_option.text == denoise[1]["row"]


def test_play_goes_from_the_corrupted_image_to_the_end(opened: Chrome) -> None:
    """Every t is shown once, from 0 to T, and then it stops; a second press pauses."""
    opened.execute_script(
        "window.seen = [];"
        "new MutationObserver(() => window.seen.push(document.getElementById('now').textContent))"
        ".observe(document.getElementById('now'), {childList: true})"
    )
    play = opened.find_element(By.ID, "play")
    play.click()
    assert play.text == "Pause"
    play.click()
    assert play.text == "Play"
    assert now(opened) == 0
    play.click()
    WebDriverWait(opened, 30).until(lambda b: b.find_element(By.ID, "play").text == "Play")
    assert list(dict.fromkeys(opened.execute_script("return window.seen"))) == [str(t) for t in range(7)]


def test_the_chart_is_the_curve_and_moves_t(opened: Chrome, scenes: Scenes) -> None:
    """The dot stands on this image's curve above its t, and all of the curve, the corrupted image's error
    at t = 0 too, below the top of the axis; a press on the chart goes to the t below it.
    """
    scene, *_ = scenes
    move(opened, 2)
    script = """
        const numbers = (node, ...names) => names.map((name) => Number(node.getAttribute(name)));
        const chart = document.getElementById("chart");
        const points = chart.querySelector(".one").getAttribute("points").split(" ");
        return [numbers(chart.querySelector("circle"), "cx", "cy"),
                points.map((point) => point.split(",").map(Number))];
    """
    dot, points = opened.execute_script(script)
    assert dot == points[2]
    heights = np.array([y for _, y in points])
    zero = opened.execute_script("return document.getElementById('chart').clientHeight - 36")
    ratio = (zero - heights) / np.array(scene["errors"][0])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)  # heights are errors
    assert heights.min() >= 18  # where the axis ends
    press = """
        const chart = document.getElementById("chart");
        const clientX = chart.getBoundingClientRect().left + arguments[0];
        chart.dispatchEvent(new PointerEvent("pointerdown", {clientX, buttons: 1}));
    """
    for t in (5, 0, 1):
        opened.execute_script(press, points[t][0])
        assert now(opened) == t


def test_nothing_is_fetched_and_nothing_goes_wrong(opened: Chrome, trained) -> None:
    """One request, for the page itself, while all its controls are used; a silent console."""
    for t in range(7):
        move(opened, t)
    opened.find_elements(By.CSS_SELECTOR, "#tasks label")[1].click()
    opened.find_element(By.ID, "best").click()
    assert requested(opened) == [(trained.path / "report.html").as_uri()]
    assert opened.get_log("browser") == []


def test_a_fetch_would_be_seen(browser: Chrome, tmp_path: Path) -> None:
    """The test above can fail: a page with an image from a server is told apart; the policy stops it."""
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Nothing on the terminal."""

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/seen.png"
        bare = tmp_path / "bare.html"
        bare.write_text(f'<link rel="icon" href="data:,"><img src="{address}">')
        assert requested(visit(browser, bare)) == [bare.as_uri(), address]
        text = page.render(
            {"tasks": {}, "selection": {}, "beside": {"selection": {}}},
            heading="title: details",
            configuration="",
            figures={},
            trajectories={},
        )
        guarded = tmp_path / "guarded.html"
        guarded.write_text(text.replace("<main>", f'<main><img src="{address}">'))
        visit(browser, guarded)
        assert "Content Security Policy" in browser.get_log("browser")[0]["message"]
        server.shutdown()
        thread.join()
    assert asked == ["/seen.png"]


def test_a_configuration_is_text(browser: Chrome, trained, read_scenes, tmp_path: Path) -> None:
    """Names and values that look like markup are shown as they are, wherever they stand, and not run."""
    hostile = "</script></pre><script>window.owned = true</script><img src=x onerror='window.owned = true'>"
    results = json.loads(json.dumps(trained.results))
    for task in results["tasks"].values():
        task["models"][hostile] = task["models"]["bare_attention"]
        task["differences"][hostile] = task["differences"]["bare_attention"]
    for rows in results["selection"].values():
        rows[hostile] = rows["bare_attention"]
    results["runs"] = {hostile: hostile}
    results["cost"]["device"] = hostile
    scene = read_scenes(trained.path)[0] | {"row": hostile, "how": hostile}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "scenes", lambda *given: [scene])
        text = page.render(
            results, heading=f"{hostile}: {hostile}", configuration=hostile, figures={}, trajectories={}
        )
    path = tmp_path / "hostile.html"
    path.write_text(text)
    visit(browser, path)
    assert browser.execute_script("return window.owned === undefined")
    assert not browser.find_elements(By.CSS_SELECTOR, "img")
    assert len(browser.find_elements(By.CSS_SELECTOR, "script")) == 2
    for where in ("h1", "header p", "pre", "tbody th", "#how"):
        shown = [
            node.get_attribute("textContent") for node in browser.find_elements(By.CSS_SELECTOR, where)
        ]
        assert any(hostile in text for text in shown), where
    assert browser.get_log("browser") == []


def test_without_scripts_everything_else_is_there(browser: Chrome, trained) -> None:
    """Tables and curves stand in the page itself; what needs JavaScript says so and is not half there."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        visit(browser, trained.path / "report.html")
        assert not browser.find_element(By.ID, "viewer").is_displayed()
        text = browser.find_element(By.TAG_NAME, "main").text
        assert "The slider needs JavaScript" in text
        best = trained.results["tasks"]["masked"]["models"]["bare_attention"]["best"]
        assert f"{best['mse']:.4f} (t={best['t']}" in text
        curves = browser.find_elements(By.CSS_SELECTOR, "section img")
        assert len(curves) == 8
        assert all(image.is_displayed() and image.size["height"] > 50 for image in curves)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_phones_and_the_dark(browser: Chrome, trained, tmp_path: Path) -> None:
    """At the width of a phone nothing sticks out of the page; paper and ink change places in the dark."""
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        visit(browser, trained.path / "report.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") == 360
        for name in ("original", "corrupted", "state"):
            place = browser.find_element(By.ID, name).rect
            assert place["width"] > 90
            assert place["x"] + place["width"] <= 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    lightness = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        shot = base64.b64decode(browser.get_screenshot_as_base64())
        lightness[scheme] = page_lightness(shot)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert lightness["light"] > 200
    assert lightness["dark"] < 60


def page_lightness(png: bytes) -> float:
    """Mean grey level of the left margin of a screenshot."""
    return float(np.asarray(Image.open(io.BytesIO(png)).convert("L"))[:, :10].mean())
