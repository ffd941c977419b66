"""Fixtures for the sandbox's tests: a running sandbox, its contract, and a webhook receiver."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from kapso_connect.testing import Sandbox
from tests.contract import CONTRACT, find_path

REGISTRY = Registry().with_resource("urn:kapso", Resource(CONTRACT, DRAFT202012))
ERROR = "#/components/schemas/Error"


def check_against_contract(response: requests.Response) -> None:
    """Fail unless the response has a status and a body that the contract allows."""
    schema = _schema(response)
    if schema is None:
        assert response.content == b""
        return
    validator = Draft202012Validator(
        {"$ref": f"urn:kapso{schema}"}, registry=REGISTRY, format_checker=FormatChecker()
    )
    validator.validate(response.json())


def _schema(response: requests.Response) -> str | None:
    path = response.request.path_url.split("?")[0]
    method, status = str(response.request.method).lower(), str(response.status_code)
    template = find_path(path)
    if template is not None:
        answers = CONTRACT["paths"][template].get(method, {"responses": {}})["responses"]
        if status in answers:
            pointer = f"#/paths/{template.replace('/', '~1')}/{method}/responses/{status}"
            if "$ref" in answers[status]:
                return ERROR
            content = "/content/application~1json/schema"
            return f"{pointer}{content}" if "content" in answers[status] else None
    assert response.status_code >= 400, f"{method} {path} must not answer {status}"
    return ERROR


class Api:
    """A client of the Platform API; every response is checked against the contract."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.base = f"{sandbox.url}/platform/v1"
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
