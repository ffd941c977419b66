"""What a web page of another site, open in the developer's browser, can do to the sandbox."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import requests

from kapso_connect.sandbox.__main__ import allowed_hosts, main, parser
from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Api, Receiver

pytest_plugins = ("tests.sandbox.support",)

OTHER_SITE = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://[::1"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost.evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
WRITES = [
    ("POST", "/sandbox/webhook", {"url": "https://evil.example/", "secret": "known"}),
    ("POST", "/sandbox/events", {"event": "whatsapp.phone_number.created", "payload": {}}),
    ("POST", "/sandbox/reset", None),
    ("POST", "/press/reset", None),
    ("DELETE", "/sandbox/faults", None),
    ("POST", "/platform/v1/customers", {"customer": {"name": "Acme"}}),
    ("PATCH", "/sandbox/numbers/1", {}),
]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8900", "127.0.0.1.evil.example"])
@pytest.mark.parametrize(
    "path", ["/", "/sandbox/state", "/platform/v1/whatsapp/webhooks", "/deliveries"]
)
def test_another_host_name_is_refused(box: Sandbox, path: str, host: str) -> None:
    headers = {"Host": host, "X-API-Key": box.api_key}
    answer = requests.get(box.url + path, headers=headers, timeout=10)
    assert answer.status_code == 400
    assert "--allowed-host" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8900", "[::1]:8900"])
def test_names_of_this_machine_are_allowed(box: Sandbox, host: str) -> None:
    answer = requests.get(f"{box.url}/sandbox/ready", headers={"Host": host}, timeout=10)
    assert answer.status_code == 200


def test_host_names_that_it_was_told_are_allowed() -> None:
    options = ["--host", "::", "--public-url", "https://box.example:8443/", "--allowed-host", "box"]
    hosts = allowed_hosts(parser().parse_args(options))
    assert hosts[-2:] == ["box.example", "box"]
    assert "*" not in hosts


def test_a_public_url_without_a_host_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With it, pages whose origin is "null" would be those of the sandbox's own site."""
    with pytest.raises(SystemExit):
        main(["--public-url", "box:8900"])
    assert "--public-url must be a URL" in capsys.readouterr().err


def test_a_content_length_that_is_no_number_is_no_error_of_the_sandbox(box: Sandbox) -> None:
    answer = requests.get(f"{box.url}/sandbox/ready", headers={"Content-Length": "x"}, timeout=10)
    assert answer.status_code == 200


@pytest.mark.parametrize("headers", OTHER_SITE, ids=json.dumps)
@pytest.mark.parametrize(("method", "path", "body"), WRITES, ids=lambda value: str(value)[:30])
def test_pages_of_other_sites_change_nothing(
    box: Sandbox, method: str, path: str, body: object, headers: dict[str, str]
) -> None:
    before = box.state()
    answer = requests.request(
        method,
        box.url + path,
        # A form or fetch() in the mode no-cors can send JSON as plain text.
        data=json.dumps(body) if body is not None else None,
        headers={"Content-Type": "text/plain", "X-API-Key": box.api_key, **headers},
        timeout=10,
    )
    assert answer.status_code == 403
    assert box.state() == before


@pytest.mark.parametrize("headers", OTHER_SITE, ids=json.dumps)
def test_pages_of_other_sites_connect_no_number(
    box: Sandbox, box_api: Api, headers: dict[str, str]
) -> None:
    link = box_api.link(box_api.customer())
    form = {"outcome": "connect"}
    answer = requests.post(link["url"], data=form, headers=headers, timeout=10)
    assert answer.status_code == 403
    assert box.state()["phone_numbers"] == []


def test_pages_of_other_sites_send_no_webhook_again(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    box.complete(box_api.link(box_api.customer())["url"])
    (delivery,) = box.wait_for_deliveries(1)
    url, form = f"{box.url}/press/resend", {"target": delivery["id"], "button": "again"}
    headers = {"Origin": "https://evil.example"}
    assert requests.post(url, data=form, headers=headers, timeout=10).status_code == 403
    assert len(box.deliveries()) == 1
    own = {"Origin": box.url, "Sec-Fetch-Site": "same-origin"}
    assert requests.post(url, data=form, headers=own, timeout=10).status_code == 200
    assert len(box.deliveries()) == 2


def test_the_hosted_pages_own_form_works(box: Sandbox, box_api: Api) -> None:
    link = box_api.link(box_api.customer())
    headers = {"Origin": box.url, "Sec-Fetch-Site": "same-origin"}
    answer = requests.post(link["url"], data={"outcome": "connect"}, headers=headers, timeout=10)
    assert answer.status_code == 200
    assert len(box.state()["phone_numbers"]) == 1


def test_no_page_of_another_site_may_read_or_frame_it(box: Sandbox, box_api: Api) -> None:
    link = box_api.link(box_api.customer())
    for url in (link["url"], f"{box.url}/sandbox/state", f"{box.url}/platform/v1/customers"):
        answer = requests.get(url, headers={"Origin": "https://evil.example"}, timeout=10)
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not [name for name in answer.headers if name.startswith("Access-Control-")]


def test_webhook_secret_is_shown_only_with_the_api_key(box: Sandbox) -> None:
    url, body = "http://127.0.0.1:9/", {"url": "http://127.0.0.1:9/", "secret": "s3cret"}
    box.set_webhook(url, "s3cret")
    for answer in (
        requests.get(f"{box.url}/sandbox/state", timeout=10),
        requests.get(f"{box.url}/", timeout=10),
        requests.post(f"{box.url}/sandbox/webhook", json=body, timeout=10),
    ):
        assert answer.status_code == 200
        assert "s3cret" not in answer.text
    assert box.state()["webhooks"][0]["secret_key"] == "s3cret"
