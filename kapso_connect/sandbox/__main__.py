"""``python -m kapso_connect.sandbox``: start the sandbox and serve until told to stop."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import threading
from types import FrameType

from .control import restart
from .server import configure, listen
from .state import Options, world
from .webhooks import sender


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m kapso_connect.sandbox",
        description="A local stand-in for Kapso. It is NOT Kapso: nothing reaches WhatsApp.",
    )
    add = result.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8900, help="0 picks a free one (default: %(default)s)")
    add("--public-url", default="", help="how browsers reach it, where that is another address")
    add("--api-key", default="", help="the only API key to accept (default: any)")
    add("--webhook-url", default="", help="where webhooks go, for example your site's")
    add("--webhook-secret", default="", help="what signs them (default: made up and printed)")
    add("--retry-scale", type=float, default=1.0, help="times 10/40/90 s; 0 retries at once")
    add("--teardown-seconds", type=float, default=0.2, help="how long a deleted number is readable")
    add("--stop-on-eof", action="store_true", help="stop when standard input is closed")
    add("--verbose", action="store_true", help="print every request")
    return result


def _already_stopping(signum: int, frame: FrameType | None) -> None:
    pass


def _stop(signum: int, frame: FrameType | None) -> None:
    # Who is told twice (a signal, and the end of standard input) ends as cleanly. Not SIG_IGN yet:
    # Python complains of a second signal that came before it was ignored.
    signal.signal(signal.SIGTERM, _already_stopping)
    signal.signal(signal.SIGINT, _already_stopping)
    raise SystemExit(0)


def _stop_on_eof() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    if given.retry_scale < 0 or given.teardown_seconds < 0:
        parser().error("--retry-scale and --teardown-seconds must not be negative")
    configure()
    try:
        server = listen(given.host, given.port)
    except (OSError, OverflowError) as error:
        sys.exit(f"The sandbox cannot listen on {given.host}:{given.port}: {error}")
    host = f"[{given.host}]" if ":" in given.host else given.host
    made_up = bool(given.webhook_url and not given.webhook_secret)
    world.options = Options(
        base_url=given.public_url.rstrip("/") or f"http://{host}:{server.server_port}",
        api_key=given.api_key,
        webhook_url=given.webhook_url,
        webhook_secret=secrets.token_hex(16) if made_up else given.webhook_secret,
        retry_scale=given.retry_scale,
        teardown_seconds=given.teardown_seconds,
        verbose=given.verbose,
    )
    restart()
    sender.start()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    if given.stop_on_eof:
        threading.Thread(target=_stop_on_eof, daemon=True).start()
    if made_up:
        print(f"Webhooks are signed with the secret {world.options.webhook_secret}")
    url = f"http://{host}:{server.server_port}"
    print(f"Kapso sandbox (this is NOT Kapso) on {url}", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()
        # Python takes its own handlers away before the process is gone.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
