from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection

import pytest
import requests

from kapso_connect.testing import Sandbox

pytestmark = pytest.mark.slow

pytest_plugins = ("tests.sandbox.support",)

COMMAND = [sys.executable, "-m", "kapso_connect.sandbox"]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    # A site's settings that do not even exist: they must not be looked at.
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "no.such.settings"}
    options = ["--port", "0", "--stop-on-eof", "--webhook-url", "http://127.0.0.1:9/"]
    with subprocess.Popen(
        [*COMMAND, *options],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        yield running
        running.kill()


def first_lines(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout
    return [process.stdout.readline().strip() for _ in range(2)]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_its_url_and_stops_cleanly(
    process: subprocess.Popen[str], signum: signal.Signals
) -> None:
    secret, url = first_lines(process)
    assert secret.startswith("Webhooks are signed with the secret ")
    assert url.startswith("Kapso sandbox (this is NOT Kapso) on http://127.0.0.1:")
    answer = requests.get(url.split()[-1] + "/sandbox/ready", timeout=10)
    assert answer.json() == {"ready": True}
    process.send_signal(signum)
    output, _ = process.communicate(timeout=10)
    assert (process.returncode, output) == (0, "")


def test_it_stops_when_its_parent_ends(process: subprocess.Popen[str]) -> None:
    first_lines(process)
    assert process.stdin
    process.stdin.close()
    assert process.wait(timeout=10) == 0


def test_a_port_in_use_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=20
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"The sandbox cannot listen on 127.0.0.1:{port}: ")


def test_two_hundred_connections_at_once(box: Sandbox) -> None:
    host, port = box.url.removeprefix("http://").split(":")
    request = b"GET /sandbox/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def ask(connection: socket.socket) -> bytes:
        connection.sendall(request)
        return connection.recv(12)

    connections = [socket.create_connection((host, int(port)), timeout=10) for _ in range(200)]
    try:
        with ThreadPoolExecutor(20) as pool:
            answers = [*pool.map(ask, connections)]
        assert answers == [b"HTTP/1.1 200"] * 200
    finally:
        for connection in connections:
            connection.close()


def test_one_connection_serves_many_requests(box: Sandbox) -> None:
    connection = HTTPConnection(box.url.removeprefix("http://"), timeout=10)
    with closing(connection):
        connection.connect()
        socket_at_first = connection.sock
        for _ in range(3):
            connection.request("GET", "/sandbox/ready")
            assert connection.getresponse().read()
            assert connection.sock is socket_at_first
