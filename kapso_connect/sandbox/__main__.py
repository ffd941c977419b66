"""``python -m kapso_connect.sandbox``: start the sandbox and serve until it is stopped."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import threading
from urllib.parse import urlsplit

from .control import restart, set_default_webhook
from .server import configure, listen
from .state import store
from .state_file import StateFile, StateFileError, describe_contents
from .webhooks import sender

LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m kapso_connect.sandbox",
        description="A local stand-in for Kapso. It is NOT Kapso: nothing reaches WhatsApp.",
    )
    add = result.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8900, help="0 picks a free one (default: %(default)s)")
    add("--public-url", default="", help="URL for browsers, if it differs")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="HOST",
        help="a further host name that requests may be for, such as the name of a container; "
        "localhost, 127.0.0.1, [::1], --host and that of --public-url are allowed; may be repeated",
    )
    add("--api-key", default="", help="the only API key to accept (default: any)")
    add("--webhook-url", default="", help="where webhooks go, for example your site's")
    add("--webhook-secret", default="", help="what signs them (default: random, and printed)")
    add("--retry-scale", type=float, default=1.0, help="factor for 10/40/90 s; 0 retries at once")
    add("--rate-limit", type=int, default=1000, help="requests a minute and key; 0: no limit")
    add("--teardown-seconds", type=float, default=0.2, help="how long a deleted number is readable")
    add(
        "--state",
        default="",
        metavar="FILE",
        help="keep customers, links, numbers and webhooks in this file between starts; it has "
        "secrets",
    )
    add("--stop-on-eof", action="store_true", help="stop when standard input is closed")
    add("--verbose", action="store_true", help="print every request")
    return result


def allowed_hosts(options: argparse.Namespace) -> list[str]:
    """Return the host names that requests may be for.

    Any other name belongs to a web page that has it resolved to this machine (DNS rebinding).
    """
    host = f"[{options.host}]" if ":" in options.host else options.host
    public_host = urlsplit(options.public_url).hostname or ""
    return [*LOCAL_HOSTS, host, *filter(None, [public_host]), *options.allowed_host]


def configure_webhook(options: argparse.Namespace) -> bool:
    """Register the webhook of the command line in place of that of the state file, whose secret
    it keeps unless another one is given. Return whether the secret has to be announced."""
    if not options.webhook_url:
        return False
    known = store.webhooks.get(store.default_webhook_id)
    if options.webhook_secret:
        announce = False
    else:
        options.webhook_secret = (known and known.secret_key) or secrets.token_hex(16)
        announce = True
    wanted = (options.webhook_url, options.webhook_secret)
    if known is None or (known.url, known.secret_key) != wanted:
        set_default_webhook(*wanted)
    return announce


def stop_saving(state_file: StateFile | None) -> None:
    """Save for the last time, or say what is lost."""
    if state_file is None:
        with store.lock:
            contents = describe_contents()
        if contents:
            print(f"Forgotten: {contents}. Keep them with --state FILE", flush=True)
        return
    try:
        state_file.stop()
    except StateFileError as error:
        sys.exit(str(error))


def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    if min(options.retry_scale, options.teardown_seconds, options.rate_limit) < 0:
        parser().error("--retry-scale, --teardown-seconds and --rate-limit must not be negative")
    if options.public_url and not urlsplit(options.public_url).netloc:
        parser().error("--public-url must be a URL, such as http://sandbox:8900")
    configure(verbose=options.verbose, allowed_hosts=allowed_hosts(options))
    try:
        server = listen(options.host, options.port)
    except (OSError, OverflowError) as error:
        sys.exit(f"The sandbox cannot listen on {options.host}:{options.port}: {error}")
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{server.server_port}"
    options.base_url = options.public_url.rstrip("/") or url
    store.options = options
    restart()
    state_file = StateFile(options.state) if options.state else None
    try:
        if state_file:
            state_file.load()
        announce_secret = configure_webhook(options)
        if state_file:
            state_file.start()
    except StateFileError as error:
        sys.exit(str(error))
    sender.start()

    def stop(*_: object) -> None:
        # In another thread, since shutdown() waits for serve_forever(). Called twice, it does
        # nothing more.
        threading.Thread(target=server.shutdown, daemon=True).start()

    def stop_on_eof() -> None:
        while os.read(0, 1024):
            pass
        stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if options.stop_on_eof:
        threading.Thread(target=stop_on_eof, daemon=True).start()
    if state_file and (contents := describe_contents()):
        print(f"It continues with {contents} of {options.state}")
    if announce_secret:
        print(f"Webhooks are signed with the secret {options.webhook_secret}")
    print(f"Kapso sandbox (this is NOT Kapso) on {url}", flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    stop_saving(state_file)


if __name__ == "__main__":
    main()
