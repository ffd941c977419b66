"""Fixtures for the sandbox's tests: a running sandbox, its contract, and a webhook receiver."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator, FormatChecker

from kapso_connect.testing import Sandbox
from tests.contract import CONTRACT, META_PATH, PLATFORM_PATH, find_path

ERROR = "#/components/schemas/Error"


def check_against_contract(response: requests.Response) -> None:
    """Fail unless the contract allows the response: its status, its headers and its body.

    It has all headers that the contract names. What no operation of the contract answers (405, 413,
    an unknown path) is an error in Kapso's form.
    """
    documented = documented_response(response)
    for name, header in documented.get("headers", {}).items():
        value: object = response.headers[name]
        if resolve(header)["schema"]["type"] == "integer":
            assert re.fullmatch("[0-9]+", str(value)), f"{name}: {value}"
    if "content" not in documented:
        assert response.content == b""
        return
    assert response.headers["Content-Type"] == "application/json"
    validate(response.json(), documented["content"]["application/json"]["schema"])


def documented_response(response: requests.Response) -> dict[str, Any]:
    path = response.request.path_url.split("?")[0]
    method, status = str(response.request.method).lower(), str(response.status_code)
    operations = CONTRACT["paths"].get(find_path(path) or "", {})
    answers = operations.get(method, {"responses": {}})["responses"]
    if status in answers:
        return resolve(answers[status])
    assert response.status_code >= 400, f"{method} {path} must not answer {status}"
    return {"content": {"application/json": {"schema": {"$ref": ERROR}}}}


def resolve(part: dict[str, Any]) -> dict[str, Any]:
    """Return what a ``$ref`` of the contract refers to, or the part itself."""
    if "$ref" not in part:
        return part
    found: Any = CONTRACT
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return resolve(found)


def validate(value: object, schema: dict[str, Any]) -> None:
    """Fail unless ``value`` is valid against a schema of the contract."""
    Draft202012Validator(
        {**schema, "components": CONTRACT["components"]}, format_checker=FormatChecker()
    ).validate(value)


class Api:
    """A client of the Platform API; every response is checked against the contract."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.base = sandbox.url + PLATFORM_PATH
        self.meta_base = sandbox.url + META_PATH
        self.http = requests.Session()
        self.http.headers["X-API-Key"] = sandbox.api_key

    def __call__(self, method: str, path: str, body: object = None, **kwargs: Any) -> Any:
        response = self.raw(method, path, body, **kwargs)
        check_against_contract(response)
        return response

    def raw(self, method: str, path: str, body: object = None, **kwargs: Any) -> requests.Response:
        options = {"timeout": 10, "allow_redirects": False, **kwargs}
        if body is not None:
            options["json"] = body
        return self.http.request(method, self.base + path, **options)

    def send(self, phone_number_id: str, **message: Any) -> requests.Response:
        """Send a message through Meta's API, a text unless ``message`` says otherwise."""
        body = {
            "messaging_product": "whatsapp",
            "to": "15551234567",
            "type": "text",
            "text": {"body": "Hello"},
            **message,
        }
        url = f"{self.meta_base}/{phone_number_id}/messages"
        response = self.http.post(url, json=body, timeout=10, allow_redirects=False)
        check_against_contract(response)
        return response

    def number_webhook(self, phone_number_id: str, **fields: Any) -> dict[str, Any]:
        """Create a webhook of one number."""
        fields = {"secret_key": "number-secret", **fields}
        path = f"/whatsapp/phone_numbers/{phone_number_id}/webhooks"
        response = self("POST", path, {"whatsapp_webhook": fields})
        assert response.status_code == 201, response.text
        webhook: dict[str, Any] = response.json()["data"]
        return webhook

    def customer(self, name: str = "Acme", **fields: Any) -> dict[str, Any]:
        response = self("POST", "/customers", {"customer": {"name": name, **fields}})
        assert response.status_code == 201, response.text
        return response.json()["data"]

    def link(self, customer: dict[str, Any], **fields: Any) -> dict[str, Any]:
        fields = {"meta_billing_mode": "customer_managed", **fields}
        path = f"/customers/{customer['id']}/setup_links"
        response = self("POST", path, {"setup_link": fields})
        assert response.status_code == 201, response.text
        return response.json()["data"]

    def links(self, customer: dict[str, Any]) -> list[dict[str, Any]]:
        return self("GET", f"/customers/{customer['id']}/setup_links").json()["data"]


@dataclass
class Received:
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """A webhook endpoint; ``answers`` are the statuses to give first, then ``answer``."""

    url: str
    answer: int = 200
    answers: list[int] = field(default_factory=list)
    location: str | None = None
    received: list[Received] = field(default_factory=list)
    before_answer: threading.Event | None = None

    def receive(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.received.append(Received(dict(handler.headers), body))
        if self.before_answer:
            self.before_answer.wait(5)
        handler.send_response(self.answers.pop(0) if self.answers else self.answer)
        if self.location:
            handler.send_header("Location", self.location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@pytest.fixture(scope="session")
def box_process() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def box(box_process: Sandbox) -> Sandbox:
    """The sandbox, empty."""
    box_process.reset()
    return box_process


@pytest.fixture
def box_api(box: Sandbox) -> Iterator[Api]:
    api = Api(box)
    yield api
    api.http.close()


@pytest.fixture
def api_of() -> Iterator[Callable[[Sandbox], Api]]:
    """Clients of sandboxes that a test starts itself."""
    made: list[Api] = []

    def api_of(sandbox: Sandbox) -> Api:
        made.append(Api(sandbox))
        return made[-1]

    yield api_of
    for api in made:
        api.http.close()


@pytest.fixture
def box_receiver(box: Sandbox) -> Iterator[Receiver]:
    """A receiver that the sandbox sends every event to."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.receive(self)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hook")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        box.set_webhook(receiver.url, "s3cret")
        yield receiver
        box.reset()
        server.shutdown()
        thread.join()
