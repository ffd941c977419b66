"""Retries, timeouts, connections, and where the API key must not be."""

from __future__ import annotations

import email.utils
import gzip
import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.views.debug import ExceptionReporter

from kapso_connect.exceptions import (
    KapsoBlocked,
    KapsoCredentialsError,
    KapsoError,
    KapsoNotFound,
    KapsoRateLimited,
    KapsoUnavailable,
    KapsoUnexpectedResponse,
)
from kapso_connect.kapso import http
from kapso_connect.kapso.client import MAX_ATTEMPTS, KapsoClient
from tests.faulty_server import FaultyServer, Reply, answer, broken_off, dripped, hung, raw, reset

KEY = "kapso-key-1234567890"
CUSTOMER = {"id": "1", "name": "Ada", "created_at": "2026-01-02T03:04:05Z"}
LINK = {"id": "2", "status": "active", "created_at": "2026-01-02T03:04:05Z", "url": "https://k/"}
OK = answer(200, {"data": {**CUSTOMER, **LINK}})
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

Make = Callable[..., KapsoClient]
Call = Callable[[KapsoClient], object]


def get(client: KapsoClient) -> object:
    return client.get_customer("1")


def post(client: KapsoClient) -> object:
    return client.create_customer(name="Ada")


def patch(client: KapsoClient) -> object:
    return client.revoke_setup_link("1", "2")


def delete(client: KapsoClient) -> object:
    return client.delete_phone_number("1")


EVERY = [get, post, patch, delete]
REPEATABLE = [get, patch, delete]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def make(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(http, "BACKOFF_FACTOR", 0.001)

    def make(**kwargs: Any) -> KapsoClient:
        return KapsoClient(KEY, **{"base_url": server.url, "budget": 5, **kwargs})

    return make


@pytest.fixture
def client(make: Make) -> KapsoClient:
    return make()


def unused_url() -> str:
    """Return a URL where no server listens."""
    with FaultyServer() as server:
        return server.url


# Retries


@pytest.mark.parametrize("call", EVERY)
def test_a_429_repeats_for_every_method(
    server: FaultyServer, client: KapsoClient, call: Call
) -> None:
    server.will(answer(429), OK)
    call(client)
    assert len(server.requests) == 2


def test_the_wait_asked_for_is_kept(server: FaultyServer, client: KapsoClient) -> None:
    server.will(answer(429, b"", {"Retry-After": "1"}), OK)
    started = time.monotonic()
    post(client)
    assert 1 <= time.monotonic() - started < 2


def test_a_wait_may_be_given_as_a_date(server: FaultyServer, client: KapsoClient) -> None:
    moment = int(time.time()) + 2
    date = email.utils.formatdate(moment, usegmt=True)
    server.will(answer(429, b"", {"Retry-After": date}), OK)
    get(client)
    assert moment <= time.time() < moment + 1


@pytest.mark.parametrize("call", EVERY)
def test_wait_beyond_the_budget_is_an_error(
    server: FaultyServer, client: KapsoClient, call: Call
) -> None:
    server.will(answer(429, {"error": "slow"}, {"Retry-After": "60"}))
    started = time.monotonic()
    with pytest.raises(KapsoRateLimited, match="in 60 seconds") as caught:
        call(client)
    assert time.monotonic() - started < 1
    assert (caught.value.retry_after, caught.value.status) == (60, 429)
    assert not caught.value.outcome_unknown
    assert len(server.requests) == 1


def test_a_date_beyond_the_budget_becomes_seconds(
    server: FaultyServer, client: KapsoClient
) -> None:
    date = email.utils.formatdate(time.time() + 600, usegmt=True)
    server.will(answer(429, b"", {"Retry-After": date}))
    with pytest.raises(KapsoRateLimited) as caught:
        get(client)
    assert caught.value.retry_after == pytest.approx(600, abs=5)


@pytest.mark.parametrize("wait", [None, "soon", "0", "9" * 5000, "-1", "Mon, 99 Foo 2026 99:99"])
def test_a_429_without_a_usable_wait_is_repeated_a_few_times(
    server: FaultyServer, client: KapsoClient, wait: str | None
) -> None:
    server.will(answer(429, b"", {} if wait is None else {"Retry-After": wait}))
    with pytest.raises(KapsoRateLimited):
        post(client)
    assert 1 <= len(server.requests) <= 4


@pytest.mark.parametrize("call", EVERY)
@pytest.mark.parametrize("body", [b"error code: 1010", b"<h1>Blocked</h1>", b""])
def test_request_that_never_reached_kapso_is_repeated(
    server: FaultyServer, client: KapsoClient, call: Call, body: bytes
) -> None:
    server.will(answer(403, body), OK)
    call(client)
    assert len(server.requests) == 2
    server.will(answer(403, body))
    with pytest.raises(KapsoBlocked, match=r"front of Kapso refused .* IP address") as caught:
        call(client)
    assert "Set KAPSO_CONNECT" not in str(caught.value)
    assert not caught.value.outcome_unknown
    assert len(server.requests) == 2 + MAX_ATTEMPTS


@pytest.mark.parametrize("call", EVERY)
def test_refusal_of_kapsos_own_is_not_repeated(
    server: FaultyServer, client: KapsoClient, call: Call
) -> None:
    server.will(answer(403, {"error": "no permission"}))
    with pytest.raises(KapsoCredentialsError, match="Set KAPSO_CONNECT"):
        call(client)
    assert len(server.requests) == 1


BROKEN = [
    pytest.param(answer(500), id="500"),
    pytest.param(answer(503, b"", {"Retry-After": "0"}), id="503"),
    pytest.param(broken_off(), id="closed"),
    pytest.param(reset(), id="reset"),
    pytest.param(raw(b"nonsense\r\n\r\n"), id="nonsense"),
    pytest.param(broken_off(HEAD + b'Content-Length: 99\r\n\r\n{"da'), id="half-body"),
    pytest.param(broken_off(HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"d'), id="half-chunk"),
]


@pytest.mark.parametrize("call", REPEATABLE)
@pytest.mark.parametrize("reply", BROKEN)
def test_idempotent_requests_are_retried_after_a_failure(
    server: FaultyServer, client: KapsoClient, call: Call, reply: Reply
) -> None:
    server.will(reply, OK)
    call(client)
    assert len(server.requests) == 2


@pytest.mark.parametrize("reply", BROKEN)
def test_failed_post_is_never_repeated(
    server: FaultyServer, client: KapsoClient, reply: Reply
) -> None:
    server.will(reply)
    with pytest.raises(KapsoError, match="check before you repeat") as caught:
        post(client)
    assert caught.value.outcome_unknown
    assert len(server.requests) == 1


@pytest.mark.parametrize("call", REPEATABLE)
def test_retries_are_limited(server: FaultyServer, client: KapsoClient, call: Call) -> None:
    server.will(answer(502, {"error": "bad gateway"}))
    with pytest.raises(KapsoUnavailable, match=r"\(502\).*bad gateway.*later") as caught:
        call(client)
    assert not caught.value.outcome_unknown
    assert len(server.requests) == MAX_ATTEMPTS


@pytest.mark.parametrize("call", REPEATABLE)
def test_nothing_is_retried_with_one_attempt(server: FaultyServer, call: Call) -> None:
    client = KapsoClient("key", base_url=server.url, attempts=1)
    for reply in (answer(502, {"error": "bad gateway"}), broken_off()):
        server.will(reply)
        with pytest.raises(KapsoUnavailable):
            call(client)
    assert len(server.requests) == 2


@pytest.mark.parametrize("call", EVERY)
def test_refused_connection_has_a_known_outcome(make: Make, call: Call) -> None:
    with pytest.raises(KapsoUnavailable, match="could not connect") as caught:
        call(make(base_url=unused_url()))
    assert not caught.value.outcome_unknown
    assert caught.value.status is None


def test_post_is_retried_until_the_server_listens(
    monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    monkeypatch.setattr(http, "BACKOFF_FACTOR", 0.2)
    late = FaultyServer()
    late.will(OK)
    # Bound and listening already, so the socket is closed to refuse and opened again by hand.
    address = late._server.server_address
    late._server.server_close()
    again = threading.Timer(0.1, lambda: _reopen(late, address))
    again.start()
    try:
        post(make(base_url=f"http://127.0.0.1:{address[1]}"))
    finally:
        again.join()
        late.__exit__()
    assert len(late.requests) == 1


def _reopen(server: FaultyServer, address: Any) -> None:
    inner = server._server
    inner.socket = type(inner.socket)(inner.address_family, inner.socket_type)
    inner.allow_reuse_address = True
    inner.server_address = address
    inner.server_bind()
    inner.server_activate()
    server.__enter__()


def test_deletion_whose_answer_was_lost_succeeds(server: FaultyServer, client: KapsoClient) -> None:
    server.will(broken_off(), answer(404, {"error": "gone"}))
    delete(client)
    server.will(answer(429, b"", {"Retry-After": "0"}), answer(404, {"error": "gone"}))
    with pytest.raises(KapsoNotFound):
        delete(client)


# Timeouts

SIZED = b"Content-Length: 1000\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CLOSING = b"Connection: close\r\n"
SLOW = {
    "hung": hung(),
    "hung in the headers": hung(HEAD),
    "hung in the body": hung(HEAD + SIZED + b"{"),
    "hung in the last body": hung(HEAD + CLOSING + b"\r\n{"),
    "hung after a while": hung(HEAD + SIZED + b"{", after=0.2),
    "dripping body": dripped(HEAD + SIZED, b" " * 1000),
    "dripping last body": dripped(HEAD + CLOSING + b"\r\n", b" " * 1000),
    "dripping chunks": dripped(HEAD + CHUNKED, b"1\r\n \r\n" * 999),
    "dripping refusal": dripped(b"HTTP/1.1 429 No\r\n" + SIZED, b" " * 1000),
    "dripping redirect": dripped(b"HTTP/1.1 302 No\r\nLocation: /\r\n" + SIZED, b" " * 1000),
}


@pytest.mark.parametrize(("call", "how"), [*((post, how) for how in SLOW), (get, "hung")])
def test_nothing_outlives_the_budget(
    server: FaultyServer, make: Make, call: Call, how: str
) -> None:
    server.will(SLOW[how])
    started = time.monotonic()
    with pytest.raises(KapsoUnavailable, match="in time") as caught:
        call(make(budget=0.25))
    assert time.monotonic() - started < 1.5
    assert caught.value.outcome_unknown is (call is post)


def test_one_attempt_gets_part_of_the_budget(server: FaultyServer, make: Make) -> None:
    server.will(hung(), OK)
    get(make(read_timeout=0.2))
    assert len(server.requests) == 2


def test_the_budget_is_for_all_requests_of_a_client(server: FaultyServer, make: Make) -> None:
    server.will(OK)
    client = make(budget=0.2)
    get(client)
    time.sleep(0.2)
    with pytest.raises(KapsoUnavailable, match=r"limit of 0\.2 seconds for API requests") as caught:
        post(client)
    assert not caught.value.outcome_unknown
    assert len(server.requests) == 1


def test_an_endless_answer_is_refused(
    server: FaultyServer, client: KapsoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 50_000)
    server.will(answer(200, b" " * 100_000))
    with pytest.raises(KapsoUnexpectedResponse, match="larger than"):
        get(client)
    assert len(server.requests) == 1
    server.will(raw(HEAD + CHUNKED + b"1\r\n \r\n" * 60_000))
    with pytest.raises(KapsoUnexpectedResponse) as caught:
        post(client)
    assert caught.value.outcome_unknown


def deflate(content: bytes) -> bytes:
    """Compress without the header that the standard asks for, as some servers do."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(content) + stream.flush()


COMPRESS = [("gzip", gzip.compress), ("GZIP", gzip.compress), ("x-gzip", gzip.compress)]
COMPRESS += [("deflate", zlib.compress), ("deflate", deflate)]


@pytest.mark.parametrize(("encoding", "compress"), COMPRESS)
def test_a_compressed_answer_is_read_although_none_was_asked_for(
    server: FaultyServer, client: KapsoClient, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """As proxies send them whatever they are asked for."""
    body = json.dumps({"data": {**CUSTOMER, "name": "Bäckerei"}}).encode()
    server.will(answer(200, compress(body), {"Content-Encoding": encoding}))
    assert client.get_customer("1").name == "Bäckerei"
    assert server.requests[0].headers["accept-encoding"] == "identity"
    error = compress(json.dumps({"error": "the name is taken"}).encode())
    server.will(answer(422, error, {"Content-Encoding": encoding}))
    with pytest.raises(KapsoError, match="the name is taken"):
        post(client)


def test_a_compressed_answer_that_is_too_large_is_refused(
    server: FaultyServer, client: KapsoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 50_000)
    server.will(answer(200, gzip.compress(b" " * 5_000_000), {"Content-Encoding": "gzip"}))
    with pytest.raises(KapsoUnexpectedResponse, match="larger than"):
        get(client)


@pytest.mark.parametrize(
    ("body", "encoding", "problem"),
    [
        (gzip.compress(b'{"data": {}}')[:12], "gzip", "it is not JSON"),
        (b"nonsense", "gzip", "it is not JSON"),
        (b"nonsense", "br", "encoded in a way that was not asked for"),
    ],
    ids=["cut off", "not compressed", "unknown"],
)
def test_an_answer_that_cannot_be_decoded_says_so(
    server: FaultyServer, client: KapsoClient, body: bytes, encoding: str, problem: str
) -> None:
    server.will(answer(200, body, {"Content-Encoding": encoding}))
    with pytest.raises(KapsoUnexpectedResponse, match=problem):
        get(client)


# Connections


def test_connections_are_shared_by_all_clients(server: FaultyServer, make: Make) -> None:
    server.will(OK)
    for _ in range(3):
        with make() as client:
            get(client)
            post(client)
    assert (server.connections, len(server.requests)) == (1, 6)


def test_threads_share_connections_without_mixing_answers(server: FaultyServer, make: Make) -> None:
    def mirror(connection: Any, request: Any) -> bool:
        name = request.path.rpartition("/")[2]
        return answer(200, {"data": {**CUSTOMER, "id": name}})(connection, request)

    server.will(mirror)
    one, wrong = make(), []

    def work(number: int) -> None:
        for turn in range(20):
            client = one if turn % 2 else make()
            wanted = f"{number}-{turn}"
            if client.get_customer(wanted).id != wanted:
                wrong.append(wanted)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(server.requests) == 120
    assert server.connections <= 6


FORKING = """
import os, sys
from kapso_connect.kapso import http
from kapso_connect.kapso.client import KapsoClient
client = KapsoClient("k", base_url=sys.argv[1])
client.get_customer("parent")
child = os.fork()
assert len(http._rate_limits) == (0 if child == 0 else 1)
for _ in range(5):
    assert client.get_customer("child" if child == 0 else "parent")
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_its_own_connections(server: FaultyServer) -> None:
    server.will(OK)
    command = [sys.executable, "-W", "error", "-c", FORKING, server.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(server.requests) == 11
    assert server.connections == 2


def test_a_proxy_of_the_environment_is_used(
    server: FaultyServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    server.will(OK)
    for _ in range(2):
        with make(base_url="http://api.kapso.example") as client:
            get(client)
    assert server.connections == 1
    assert server.requests[0].target == "http://api.kapso.example/platform/v1/customers/1"
    monkeypatch.setenv("HTTP_PROXY", unused_url().replace("//", "//user:pass-word@"))
    with pytest.raises(KapsoUnavailable, match="proxy") as caught:
        post(make(base_url="http://api.kapso.example"))
    assert not caught.value.outcome_unknown
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["nonsense", "ftp://x", "http://[::1", "http://", "http://\ud800"]
)
def test_an_unusable_address_names_the_setting(make: Make, address: str) -> None:
    with pytest.raises(KapsoUnavailable, match="API_BASE_URL") as caught:
        post(make(base_url=address))
    assert not caught.value.outcome_unknown


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
    command += f"-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -out {path} -keyout -"
    done = subprocess.run(command.split(), capture_output=True, check=True)
    path.write_bytes(path.read_bytes() + done.stdout)
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[FaultyServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FaultyServer(partial(context.wrap_socket, server_side=True)) as server:
        yield server


def test_ca_bundle_of_the_environment_is_used(
    tls_server: FaultyServer, certificate: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    url = tls_server.url.replace("http:", "https:")
    tls_server.will(OK)
    for _ in range(2):
        get(make(base_url=url))
    assert tls_server.connections == 1
    tls_server.will(dripped(HEAD + SIZED, b" " * 1000))
    started = time.monotonic()
    with pytest.raises(KapsoUnavailable, match="in time"):
        get(make(base_url=url, budget=0.4))
    assert time.monotonic() - started < 0.8


def test_untrusted_certificate_gets_no_request(tls_server: FaultyServer, make: Make) -> None:
    tls_server.will(OK)
    with pytest.raises(KapsoUnavailable, match="certificate") as caught:
        post(make(base_url=tls_server.url.replace("http:", "https:")))
    assert not caught.value.outcome_unknown
    assert tls_server.requests == []


def test_server_without_tls_is_unavailable(make: Make) -> None:
    def greet(sock: socket.socket) -> socket.socket:
        sock.sendall(b"220 Welcome\r\n")
        return sock

    with (
        FaultyServer(greet) as server,
        pytest.raises(KapsoUnavailable, match="TLS connection failed"),
    ):
        get(make(base_url=server.url.replace("http:", "https:")))


# Secrets


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", EVERY)
def test_a_redirect_is_refused_and_its_target_never_asked(
    server: FaultyServer, client: KapsoClient, call: Call, status: int
) -> None:
    with FaultyServer() as target:
        target.will(OK)
        server.will(answer(status, b"", {"Location": target.url}))
        with pytest.raises(KapsoUnexpectedResponse, match="redirect") as caught:
            call(client)
        assert target.connections == 0
    assert len(server.requests) == 1
    assert caught.value.status == status


def test_netrc_adds_no_credentials(
    server: FaultyServer, client: KapsoClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.will(OK)
    get(client)
    assert "authorization" not in server.requests[0].headers
    assert server.requests[0].headers["x-api-key"] == KEY


def test_cookies_are_not_sent_back(server: FaultyServer, client: KapsoClient) -> None:
    server.will(answer(200, {"data": CUSTOMER}, {"Set-Cookie": "session=1"}))
    get(client)
    get(client)
    assert "cookie" not in server.requests[1].headers


LEAKS = [
    pytest.param(OK, id="ok"),
    *[pytest.param(answer(s, {"error": f"key {KEY} no"}), id=str(s)) for s in (401, 422, 429, 500)],
    pytest.param(answer(200, f"<p>{KEY}".encode(), content_type="text/html"), id="html"),
    pytest.param(answer(404, f"<p>{KEY}".encode()), id="html-404"),
    pytest.param(answer(302, b"", {"Location": f"https://x/?{KEY}"}), id="redirect"),
    pytest.param(answer(200, {"data": {"id": KEY}}), id="missing"),
    pytest.param(broken_off(), id="closed"),
    pytest.param(reset(), id="reset"),
    pytest.param(hung(), id="hung"),
]


@pytest.mark.parametrize("call", [get, post])
@pytest.mark.parametrize("reply", LEAKS)
def test_the_key_is_shown_nowhere(
    server: FaultyServer,
    make: Make,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    call: Call,
    reply: Reply,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.will(reply)
    client = make(budget=0.3)
    shown = [repr(client), str(client)]
    if (error := error_of(call, client)) is not None:
        assert (error.__cause__, error.__context__) == (None, None)
        shown += [repr(error), repr(vars(error)), report(error)]
        shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
    assert server.requests[0].headers["x-api-key"] == KEY
    shown += [record.getMessage() + repr(vars(record)) for record in caplog.records]
    shown += capfd.readouterr()
    assert [text for text in shown if KEY in text] == []


def error_of(call: Call, client: KapsoClient) -> KapsoError | None:
    try:
        call(client)
    except KapsoError as error:
        return error
    return None


def report(error: KapsoError) -> str:
    """Return the page that Django mails to the site's admins."""
    page: str = ExceptionReporter(
        None, type(error), error, error.__traceback__
    ).get_traceback_html()
    return page


def test_error_reports_do_not_show_a_webhooks_secret(
    server: FaultyServer, client: KapsoClient
) -> None:
    server.will(answer(422, {"error": "no"}))
    secret = "s3cr3t-of-the-webhook"
    error = error_of(
        lambda client: client.create_webhook(url="https://x.example", secret_key=secret, events=[]),
        client,
    )
    assert error is not None
    reporter = ExceptionReporter(None, type(error), error, error.__traceback__)
    frames = [f for f in reporter.get_traceback_frames() if "kapso_connect" in f["filename"]]
    assert "create_webhook" in {frame["function"] for frame in frames}
    assert secret not in repr([frame["vars"] for frame in frames])
