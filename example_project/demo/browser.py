"""A minimal browser: keeps cookies, follows redirects, and submits forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from types import TracebackType
from urllib.parse import urljoin

import requests

TIMEOUT = 30


class PageError(Exception):
    """A page lacks the expected form or option."""


@dataclass
class Form:
    action: str = ""
    method: str = "get"
    values: list[tuple[str, str]] = field(default_factory=list)
    """The values that are sent unless changed."""
    boxes: list[tuple[str, str]] = field(default_factory=list)
    """The checkboxes and radio buttons, as name and value."""
    options: list[tuple[str, str, str]] = field(default_factory=list)
    """The options of selects: name of the select, value, label."""
    buttons: list[tuple[str, str]] = field(default_factory=list)

    def option(self, label: str) -> tuple[str, str]:
        """Return name and value of the select option with this label."""
        for name, value, text in self.options:
            if text == label:
                return name, value
        raise PageError(f"There is no option “{label}”, only {[o[2] for o in self.options]}.")


@dataclass
class Page:
    url: str
    status: int
    html: str
    forms: list[Form]
    text: str

    def form(self, field_name: str) -> Form:
        """Return the form that has a field or a button of this name."""
        for form in self.forms:
            if any(name == field_name for name, _ in (*form.values, *form.boxes, *form.buttons)):
                return form
        raise PageError(f"{self.url} ({self.status}) has no form with {field_name}: {self.text}")


class Browser:
    def __init__(self) -> None:
        self._session = requests.Session()
        self._session.trust_env = False  # without the machine's proxies

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session.close()

    def get(self, url: str, **parameters: str) -> Page:
        return self._page(self._session.get(url, params=parameters, timeout=TIMEOUT))

    def submit(self, page: Page, form: Form, *changes: tuple[str, str]) -> Page:
        """Submit ``form`` with ``changes``, the names and values of fields, boxes and a button."""
        changed = {name for name, _value in changes}
        data = [pair for pair in form.values if pair[0] not in changed] + list(changes)
        target = urljoin(page.url, form.action or page.url)
        # As a browser sends it; Django compares it on https.
        headers = {"Referer": page.url}
        if form.method == "post":
            response = self._session.post(target, data=data, headers=headers, timeout=TIMEOUT)
        else:
            response = self._session.get(target, params=data, headers=headers, timeout=TIMEOUT)
        return self._page(response)

    def _page(self, response: requests.Response) -> Page:
        next_url = response.headers.get("Refresh", "").partition("url=")[2]
        if next_url:
            return self.get(next_url)
        reader = _Reader()
        reader.feed(response.text)
        reader.close()
        text = " ".join("".join(reader.text).split())
        return Page(response.url, response.status_code, response.text, reader.forms, text)


class _Reader(HTMLParser):
    """Collects the forms and the visible text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.text: list[str] = []
        self._form = Form()  # for fields outside of any form
        self._select = ""
        self._label: list[str] | None = None
        self._value = ""
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.text.append(" ")
        if tag in ("script", "style"):
            self._hidden += 1
        elif tag == "form":
            self._form = Form(attributes.get("action", ""), attributes.get("method", "get").lower())
            self.forms.append(self._form)
        elif tag == "input":
            self._input(attributes)
        elif tag == "select":
            self._select = attributes.get("name", "")
        elif tag == "option":
            self._value, self._label = attributes.get("value", ""), []
            if "selected" in attributes:
                self._form.values.append((self._select, self._value))
        elif tag == "button":
            self._form.buttons.append((attributes.get("name", ""), attributes.get("value", "")))
        elif tag == "textarea":
            self._form.values.append((attributes.get("name", ""), ""))

    def _input(self, attributes: dict[str, str]) -> None:
        kind, name = attributes.get("type", "text").lower(), attributes.get("name", "")
        value = attributes.get("value", "on" if kind in ("checkbox", "radio") else "")
        if kind == "submit":
            self._form.buttons.append((name, value))
            return
        if kind in ("checkbox", "radio"):
            self._form.boxes.append((name, value))
        if name and (kind not in ("checkbox", "radio") or "checked" in attributes):
            self._form.values.append((name, value))

    def handle_endtag(self, tag: str) -> None:
        self.text.append(" ")
        if tag in ("script", "style"):
            self._hidden -= 1
        elif tag == "form":
            self._form = Form()
        elif tag == "option" and self._label is not None:
            label = " ".join("".join(self._label).split())
            self._form.options.append((self._select, self._value, label))
            self._label = None

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)
        if self._label is not None:
            self._label.append(data)
