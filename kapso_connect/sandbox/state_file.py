"""What the sandbox holds, in a file: ``--state``. It has secrets, so only its owner can read it.

Not kept: faults, deliveries and the log of requests, which belong to one run.
"""

from __future__ import annotations

import glob
import json
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from django.core.files import locks
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from .middleware import SAFE_METHODS
from .state import Conversation, Customer, PhoneNumber, Record, SetupLink, Webhook, store

FORMAT = "kapso_connect sandbox 1"
PLAIN_DICTS = ("funding", "account_events")
AnyRecord = TypeVar("AnyRecord", bound=Record)


class StateFileError(Exception):
    """The file cannot be read or written; the text says why."""


class StateFile:
    """The file that ``store`` is kept in.

    ``load`` reads it, and ``start`` keeps it up to date from then on. It is replaced as a whole, so
    that it can be read at any time, also after a kill. A second file beside it, which is locked,
    keeps other sandboxes away until this process has ended.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).resolve()
        self._saved = b""
        self._stopped = False
        self._lock: IO[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def load(self) -> None:
        """Put what the file holds into the store, if there is one. Raise StateFileError, also if
        another sandbox has it."""
        self._lock = _lock(self.path)
        for left_behind in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.new"):
            with suppress(OSError):  # a kill came while it was written
                left_behind.unlink()
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateFileError(f"{self.path} cannot be read: {error}") from None
        try:
            with store.lock:
                _restore(json.loads(content))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            reason = "is not the state of a sandbox, or is broken. It was left as it is"
            raise StateFileError(f"{self.path} {reason}; name another file") from None

    def start(self) -> None:
        """Write the file now, and after every change. Raise StateFileError if that is impossible
        now."""
        self.save()
        self._thread.start()

    def stop(self) -> None:
        """Write the file for the last time. Raise StateFileError."""
        self._stopped = True
        store.changed.set()
        self._thread.join()
        self.save()

    def save(self) -> None:
        """Write the file, unless nothing has changed. Raise StateFileError."""
        store.changed.clear()
        with store.lock:
            snapshot = _snapshot()
        content = json.dumps(snapshot, default=datetime.isoformat, indent=1).encode()
        if content == self._saved:
            return
        try:
            _replace(self.path, content)
        except OSError as error:
            raise StateFileError(f"{self.path} cannot be written: {error}") from None
        self._saved = content

    def _keep(self) -> None:
        while not self._stopped:
            store.changed.wait()
            try:
                self.save()
            except StateFileError as error:
                print(error, flush=True)


def _lock(path: Path) -> IO[bytes]:
    """Lock the state file for as long as this process runs. Raise StateFileError."""
    try:
        file = path.with_name(f".{path.name}.lock").open("wb")
    except OSError as error:
        raise StateFileError(f"{path} cannot be written: {error}") from None
    has_locks = bool(locks.LOCK_EX)
    if has_locks and not locks.lock(file, locks.LOCK_EX | locks.LOCK_NB):
        file.close()
        reason = "is used by another sandbox. Stop that one, or name another file"
        raise StateFileError(f"{path} {reason}")
    return file


def _replace(path: Path, content: bytes) -> None:
    """Replace the file at once; only its owner may read it."""
    directory, prefix = path.parent, f".{path.name}."
    descriptor, name = tempfile.mkstemp(".new", prefix, directory)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _snapshot() -> dict[str, Any]:
    numbers = store.numbers()
    return {
        "format": FORMAT,
        "project_id": store.project_id,
        "base_url": store.options.base_url,
        "default_webhook_id": store.default_webhook_id,
        "customers": [_kept(row) for row in store.customers.values()],
        "setup_links": [_kept(row) for row in store.links.values()],
        "phone_numbers": [_kept(n) for n in numbers.values() if not store.is_torn_down(n)],
        "webhooks": [_kept(row) for row in store.webhooks.values()],
        "conversations": [_kept(row) for row in store.conversations.values()],
        "ids_of_digits": dict(store.ids_of_digits),
        "generated_numbers": store.generated_numbers,
        **{name: dict(getattr(store, name)) for name in PLAIN_DICTS},
    }


def _kept(record: Record) -> dict[str, Any]:
    """Return a record's fields; the attempts that decide about a webhook's pause start anew."""
    return {name: value for name, value in vars(record).items() if name != "outcomes"}


def _restore(kept: dict[str, Any]) -> None:
    """Put a snapshot into the store; what is wrong with it raises, and the store stays as it is."""
    if kept["format"] != FORMAT:
        raise ValueError(kept["format"])
    customers = {row.id: row for row in _records(Customer, kept["customers"])}
    links = {row.id: row for row in _records(SetupLink, kept["setup_links"])}
    numbers = {row.phone_number_id: row for row in _records(PhoneNumber, kept["phone_numbers"])}
    webhooks = {row.id: row for row in _records(Webhook, kept["webhooks"])}
    conversations = {row.id: row for row in _records(Conversation, kept["conversations"])}
    for link in links.values():
        link.url = store.options.base_url + link.url.removeprefix(kept["base_url"])
        customers[link.customer_id]  # a link without its customer is an error
    plain = {name: {**kept[name]} for name in PLAIN_DICTS}
    store.restore_numbers(numbers, {**kept["ids_of_digits"]}, int(kept["generated_numbers"]))
    store.project_id = kept["project_id"]
    store.default_webhook_id = kept["default_webhook_id"]
    store.customers, store.links = customers, links
    store.webhooks, store.conversations = webhooks, conversations
    for name, values in plain.items():
        setattr(store, name, values)


def _records(kind: type[AnyRecord], rows: list[dict[str, Any]]) -> list[AnyRecord]:
    """Return the records of ``rows``; fields that a row lacks have their defaults."""
    times = {field.name for field in fields(kind) if "datetime" in str(field.type)}
    return [
        kind(
            **{
                name: datetime.fromisoformat(value) if name in times and value else value
                for name, value in row.items()
            }
        )
        for row in rows
    ]


def describe_contents() -> str:
    """Return what the store holds besides the webhook of the command line: "3 customers, 1
    number"; empty for nothing."""
    own = [one for one in store.webhooks if one != store.default_webhook_id]
    counts = {
        "customer": len(store.customers),
        "setup link": len(store.links),
        "number": len(store.numbers()),
        "webhook": len(own),
    }
    return ", ".join(
        f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items() if count
    )


class NoteChangesMiddleware:
    """Lets the state be saved after every request that may have changed it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if request.method not in SAFE_METHODS:
            store.changed.set()
        return response
