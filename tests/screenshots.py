"""Take the pictures of the documentation from the running demo: ``python -m tests.screenshots``.

Needs Chromium and Playwright; with Pillow, the files are smaller.
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, expect

from example_project.demo.browser import Browser as SimpleBrowser
from example_project.demo.data import USERNAME
from example_project.demo.processes import Demo, running
from example_project.demo.story import Story
from tests import ROOT
from tests.browser.support import running_chromium, settle

PICTURES = ROOT / "docs" / "screenshots"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 400, "height": 1150}
COMPANY = "Park Street Pharmacy"
TOGETHER = """
<style>
body {{ margin: 0; padding: 24px; background: #e4e7e6; }}
main {{ display: grid; grid-template-columns: 900px 400px 400px; gap: 24px; }}
div {{ display: grid; gap: 24px; align-content: start; }}
img {{ display: block; box-sizing: border-box; width: 100%; }}
img {{ border: 1px solid #aab2ae; border-radius: 12px; }}
</style>
<main><div>{customers}{overview}</div>{invitation}{success}</main>
"""


def take(folder: Path) -> None:
    """Take all pictures, and one of them together."""
    folder.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as temporary,
        running(log=Path(temporary) / "site.log") as demo,
        running_chromium() as browser,
    ):
        staff = new_context(browser, DESKTOP)
        link = take_of_staff(staff, demo, folder, Path(temporary) / "site.log")
        take_of_customer(new_context(browser, PHONE), link, folder)
        take_together(new_context(browser, {"width": 1796, "height": 1198}).new_page(), folder)
    for path in folder.glob("*.png"):
        shrink(path)


def new_context(browser: Browser, viewport: dict[str, int]) -> BrowserContext:
    return browser.new_context(viewport=viewport, locale="en-GB", color_scheme="light")


def take_of_staff(staff: BrowserContext, demo: Demo, folder: Path, log: Path) -> str:
    """Take the pages of staff; return the invitation of COMPANY."""
    page = staff.new_page()
    page.goto(f"{demo.site_url}/")
    page.get_by_label("User name").fill(USERNAME)
    page.get_by_label("Password").fill(demo.password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Companies on WhatsApp")).to_be_visible()
    shoot(page, folder / "start.png")
    page.goto(f"{demo.site_url}/admin/kapso_connect/customer/")
    page.get_by_role("button", name="Toggle navigation").click()  # stays closed
    shoot(page, folder / "customers.png")
    page.goto(f"{demo.site_url}/admin/kapso_connect/customer/overview/")
    shoot(page, folder / "overview.png")
    with SimpleBrowser() as simple:
        story = Story(demo, simple, log, print)
        story.log_in()
        story.invite(COMPANY)
    return story.link


def take_of_customer(customer: BrowserContext, link: str, folder: Path) -> None:
    page = customer.new_page()
    page.goto(link)
    shoot(page, folder / "invitation.png")
    page.get_by_role("button", name="Connect WhatsApp").click()
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_role("heading", name="WhatsApp is connected")).to_be_visible()
    shoot(page, folder / "success.png")


def take_together(page: Page, folder: Path) -> None:
    pictures = {path.stem: as_image(path) for path in folder.glob("*.png")}
    page.set_content(TOGETHER.format(**pictures))
    shoot(page, folder / "together.png")


def as_image(path: Path) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def shoot(page: Page, path: Path) -> None:
    """Take the window."""
    page.evaluate("scrollTo(0, 0)")
    settle(page)
    page.screenshot(path=path)


def shrink(path: Path) -> None:
    """Reduce a picture to 256 colours."""
    try:
        from PIL import Image
    except ImportError:
        return
    with Image.open(path) as picture:
        rare_colours_too = Image.Quantize.MAXCOVERAGE
        small = picture.convert("RGB").quantize(256, rare_colours_too, kmeans=4, dither=0)
        small.save(path, optimize=True)


if __name__ == "__main__":
    take(PICTURES)
