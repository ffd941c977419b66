"""Counting the clicks that a story takes."""

from __future__ import annotations

from playwright.sync_api import Page

LISTENER = """
document.addEventListener("pointerdown", (event) => {
  if (!(event.target instanceof HTMLSelectElement)) countClick();
}, true);
document.addEventListener("change", (event) => {
  if (event.target instanceof HTMLSelectElement) countClick();
}, true);
"""


class Clicks:
    """Counts clicks in ``page`` and the documents that it loads from now on: each press of the
    pointer, and each choice from a list as one. What is typed is not counted."""

    def __init__(self, page: Page) -> None:
        self.count = 0
        page.expose_function("countClick", self._add)
        page.add_init_script(LISTENER)

    def _add(self) -> None:
        self.count += 1
