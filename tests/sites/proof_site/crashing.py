"""A server that kills itself at a given step: ``python -m tests.sites.proof_site.crashing FD``.

Reads one JSON object per line, ``{"do": …, "die_at": n}``, does it in a forked process, and
prints a line: the steps that the process reached, and its result. The process kills itself with
SIGKILL at the n-th step; never with 0. Steps are each SQL statement, each side of a COMMIT, and the
steps named in the code.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.sites.proof_site.settings")
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, connections  # noqa: E402
from django.test import Client  # noqa: E402
from django.utils import timezone  # noqa: E402

from kapso_connect import sync  # noqa: E402
from kapso_connect.conf import get_conf  # noqa: E402
from kapso_connect.models import Connection, Customer, SetupLink, WebhookEvent  # noqa: E402
from kapso_connect.onboarding.status import repair_status  # noqa: E402

from . import steps, views  # noqa: E402


class HalfByHalf:
    """A request's body, with a step in its middle."""

    def __init__(self, stream: Any, length: int) -> None:
        self.stream = stream
        self.length = length
        self.readline = stream.readline

    def read(self, size: int = -1) -> bytes:
        steps.reached("before the body is read")
        size = self.length if size < 0 else min(size, self.length)
        half = self.stream.read(size // 2)
        steps.reached("half of the body is read")
        return half + self.stream.read(size - len(half))


class Handler(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        """Print nothing: the test has the response."""


class Server(WSGIServer):
    """Serves one request on a socket that was opened elsewhere."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = listener.getsockname()
        self.setup_environ()
        application = get_wsgi_application()

        def halving(environ: dict[str, Any], start_response: Any) -> Any:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"] = HalfByHalf(environ["wsgi.input"], length)
            return application(environ, start_response)

        self.set_app(halving)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.recv(1, socket.MSG_PEEK)
        steps.reached("the first byte has come")
        super().finish_request(request, client_address)
        steps.reached("the answer is sent")


def watch_sql() -> None:
    def execute(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        steps.reached(sql[:80])
        return run(sql, params, many, context)

    commit = connection._commit

    def watched_commit() -> None:
        steps.reached("before COMMIT")
        commit()
        steps.reached("after COMMIT")

    connection.execute_wrappers.append(execute)
    connection._commit = watched_commit


def in_new_process(what: Callable[[], Any], die_at: int) -> dict[str, Any]:
    """Fork and do it there; return the steps reached, whether it was killed, and its result."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            _do_and_report(what, die_at, writer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as lines:
        output = [json.loads(line) for line in lines]
    _pid, status = os.waitpid(pid, 0)
    return {
        "steps": [line["step"] for line in output if "step" in line],
        "killed": os.WIFSIGNALED(status),
        "failed": os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0,
        "result": next((line["result"] for line in output if "result" in line), None),
    }


def _do_and_report(what: Callable[[], Any], die_at: int, writer: int) -> None:
    count = 0

    def report(**line: Any) -> None:
        os.write(writer, json.dumps(line).encode() + b"\n")

    def on_step(name: str) -> None:
        nonlocal count
        count += 1
        report(step=name)
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    steps.on_step = on_step
    watch_sql()
    result = what()
    connections.close_all()
    report(result=result)


def prepare(
    customer: str,
    number: str,
    connection: dict[str, Any] | None,
    stored: list[dict[str, Any]],
    link: str,
) -> None:
    """Delete all rows, and create those that a test needs."""
    views.delete_all()
    row = Customer.objects.create(name="Bäckerei Süß", kapso_id=customer)
    if connection is not None:
        Connection.objects.create(customer=row, phone_number_id=number, **connection)
    if link:
        # Created before the number: the number cannot come from a newer link.
        created_at = timezone.now() - timedelta(hours=1)
        row.latest_setup_link = SetupLink.objects.create(
            customer=row, kapso_id=link, url="https://x.example", created_at=created_at
        )
        row.save(update_fields=["latest_setup_link"])
    repair_status(row.pk)
    for index, event in enumerate(stored):
        WebhookEvent.objects.create(idempotency_key=f"stored-{index}", **event)


def kapso_sync() -> list[str]:
    report = sync.run()
    # Killed or not, a status is committed together with what it follows from.
    return [*report.errors, *["a wrong status was stored"] * report.repaired]


def recover(there: dict[str, Any]) -> dict[str, Any]:
    """Run ``kapso_sync``; return its errors and all rows; delete and prepare the rows again."""
    time.sleep(2 * get_conf().lease_seconds)
    errors = kapso_sync()
    rows = views.all_rows()
    prepare(**there)
    return {"errors": errors, "rows": rows}


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    server = Server(listener)
    # Import everything before the forks.
    Client().get("/proof/rows/")
    Client().get("/whatsapp/success/?setup_link_id=x&phone_number_id=1")
    kapso_sync()
    connections.close_all()
    gc.collect()
    gc.freeze()  # so that the forks share the memory
    for line in sys.stdin:
        command = json.loads(line)
        do = {
            "serve": server.handle_request,
            "sync": kapso_sync,
            "recover": lambda: recover(command["with"]),  # noqa: B023
            "prepare": lambda: prepare(**command["with"]),  # noqa: B023
        }[command["do"]]
        print(json.dumps(in_new_process(do, command.get("die_at", 0))), flush=True)


if __name__ == "__main__":
    main()
