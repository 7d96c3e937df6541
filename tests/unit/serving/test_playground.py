"""The playground in a headless Chromium: what a person does there, on a desktop and on a phone."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from serving.config import Defaults
from serving.recipes import mini
from tests.unit.serving.live_service import LiveService, serve

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (`make browser` installs one)")
PHONE = {"width": 390, "height": 780}
SECONDS = 60_000
KEY = "a-key-for-the-playground"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield started
        started.close()


@pytest.fixture(scope="module")
def live(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    service = replace(
        mini(), model=str(tiny_model), data_folder=tmp_path_factory.mktemp("playground"), threads=1,
        defaults=Defaults(width=64, height=96, num_inference_steps=2), person_check="render"
    )  # fmt: skip
    with serve(service) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab whose errors fail the test: scripts that break, and what the page's own policy forbids."""
    context = browser.new_context()
    tab, broken = context.new_page(), []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "the server responded with a status" not in message.text:
            broken.append(message.text)

    tab.on("console", note)
    tab.on("pageerror", lambda error: broken.append(str(error)))
    tab.set_default_timeout(SECONDS)
    yield tab
    context.close()
    assert broken == []


def choose(page: Page, person: Path, pose: Path) -> None:
    page.select_option("#kind", "pose_video")
    page.set_input_files("#image", person)
    page.set_input_files("#motion", pose)


def finish(page: Page, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.click("#go")
    expect(page.locator("#result")).to_be_visible(timeout=SECONDS)


def test_an_image_and_a_motion_become_a_clip_that_can_be_compared(
    page: Page, live: LiveService, person_and_pose: tuple[Path, Path]
):
    page.goto(live.url)
    expect(page.locator("#served")).to_contain_text("mini")
    choose(page, *person_and_pose)
    expect(page.locator("#findings")).to_contain_text("17 of 17 frames", timeout=SECONDS)
    finish(page, "a figure that waves")
    assert page.evaluate("document.getElementById('clip').videoWidth") == 64
    expect(page.locator("#facts")).to_contain_text("64x96, 17 frames")
    page.locator("#slider").fill("60")
    assert page.evaluate("document.getElementById('compare').style.getPropertyValue('--share')") == "60%"
    assert page.evaluate("document.getElementById('source').videoWidth") == 64
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith(".mp4")


def test_a_painted_mask_is_sent_white_where_the_image_is_kept(
    page: Page, live: LiveService, person_and_pose: tuple[Path, Path]
):
    from PIL import Image

    page.goto(live.url)
    choose(page, *person_and_pose)
    page.click("#paint")
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    finish(page, "a figure before a blue wall")
    video = live.backend.store.page(after=None, limit=1, descending=True)[0][0]
    assert set(video.inputs) == {"input_reference", "pose_video", "mask"}
    mask = Image.open(live.backend.blobs.medium(video.id, "mask")).convert("L")
    assert mask.size == (64, 96)
    assert mask.getpixel((32, 48)) == 0
    assert mask.getpixel((32, 2)) == 255


@pytest.mark.parametrize("tab", ["curl", "python"])
def test_the_snippet_makes_the_same_request(
    page: Page, live: LiveService, person_and_pose: tuple[Path, Path], tab: str, tmp_path: Path
):
    page.goto(live.url)
    choose(page, *person_and_pose)
    page.fill("#prompt", 'a figure\'s "wave"')
    page.evaluate("document.getElementById('more').open = true")
    page.fill("#seed", "11")
    page.locator("#seed").blur()
    page.click(f"[data-tab={tab}]")
    text = page.locator("#snippet").inner_text()
    for file in person_and_pose:
        shutil.copy(file, tmp_path / file.name)
    if tab == "curl":
        if shutil.which("curl") is None:
            pytest.skip("no curl here")
        command = text.split("\n#")[0].replace("curl ", "curl -sS ", 1)
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    else:
        subprocess.run([sys.executable, "-c", text], cwd=tmp_path, check=True, timeout=120)
        assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"
    made = live.backend.store.page(after=None, limit=1, descending=True)[0][0]
    assert made.settings.seed == 11
    assert made.settings.prompt == 'a figure\'s "wave"'


def test_recent_clips_are_shown_again_and_deleted(page: Page, live: LiveService, person_and_pose: tuple[Path, Path]):
    page.goto(live.url)
    choose(page, *person_and_pose)
    finish(page, "to be deleted")
    page.reload()
    first = page.locator(".past").first
    expect(first.locator("img.picture")).to_be_visible()
    first.locator(".show").click()
    expect(page.locator("#result")).to_be_visible()
    expect(page.locator("#slider_row")).to_be_hidden()  # the motion went with the page's last visit
    count = page.locator(".past").count()
    page.locator(".past").first.locator(".drop-it").click()
    expect(page.locator(".past")).to_have_count(count - 1)


def test_what_the_service_refuses_is_said_where_it_is_seen(
    page: Page, live: LiveService, person_and_pose: tuple[Path, Path], tmp_path: Path
):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    page.goto(live.url)
    page.click("#go")
    expect(page.locator("#problem")).to_contain_text("Choose an image")
    choose(page, person_and_pose[0], broken)
    expect(page.locator("#findings .bad")).to_contain_text("pose_video")
    page.fill("#prompt", "p")
    page.click("#go")
    expect(page.locator("#problem")).to_contain_text("pose_video")


def test_it_fits_a_phone(browser: Browser, live: LiveService, person_and_pose: tuple[Path, Path]):
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.goto(live.url)
    choose(page, *person_and_pose)
    page.click("#paint")
    finish(page, "a figure on a phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    context.close()


def test_the_example_is_offered_for_a_mini_model_and_chosen_by_one_tap(page: Page, live: LiveService):
    page.goto(live.url)
    page.click("#example")
    expect(page.locator("#motion_zone video")).to_be_visible()
    expect(page.locator("#prompt")).to_have_value(re.compile("waving on a stage"))


def test_a_key_is_asked_for_and_then_used(browser: Browser, tiny_model: Path, tmp_path: Path):
    service = replace(
        mini(), model=str(tiny_model), data_folder=tmp_path, threads=1,
        api_key_hashes=(hashlib.sha256(KEY.encode()).hexdigest(),)
    )  # fmt: skip
    with serve(service) as running:
        page = browser.new_page()
        page.goto(running.url)
        expect(page.locator("#key_row")).to_be_visible()
        page.fill("#key", KEY)
        page.locator("#key").blur()
        expect(page.locator("#served")).to_contain_text("serving")
        page.close()


def test_only_the_playgrounds_own_files_can_be_asked_for(live: LiveService):
    import httpx

    assert (
        httpx.get(f"{live.url}/playground/app.js").headers["content-security-policy"].startswith("default-src 'self'")
    )
    for name in ("..%2Fconfig.py", "config.py", "%2e%2e%2fopenapi.json"):
        assert httpx.get(f"{live.url}/playground/{name}").status_code == 404
