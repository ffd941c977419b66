"""The project webhook at Kapso: what it should be, what it is, how the one becomes the other, and
whether its deliveries arrive here.

Nothing here prints, and no message holds a secret.
"""

from __future__ import annotations

import ipaddress
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.urls import NoReverseMatch, reverse
from django.views.decorators.debug import sensitive_variables

from ..conf import get_conf
from ..exceptions import KapsoError
from ..kapso.client import KapsoClient
from ..kapso.http import Unreachable, Visit, visit
from ..kapso.types import KapsoWebhook
from ..models import WebhookEvent
from .handlers import HANDLERS
from .payloads import NOT_AN_OBJECT, PROBE
from .signature import sign
from .views import WRONG_SIGNATURE

EVENTS = tuple(sorted(HANDLERS))
"""What the webhook is subscribed to: the events this app acts on."""

ESSENTIAL = ("whatsapp.phone_number.created", "whatsapp.phone_number.deleted")
"""Without these nothing works; without the others news come late, by ``kapso_sync``."""

TEST_EVENT = "whatsapp.phone_number.reconnected"
"""What a test delivery is: an event that connects nothing unless the API confirms it."""

PAYLOAD_VERSION = "v2"

VERIFICATIONS = 10
"""How often the site is asked whether it accepts a secret: each time another one of its processes
may answer, one that was not restarted among them."""

SITE_SECONDS = 10.0
"""How long the site may take for an answer: Kapso waits no longer."""

RETRIES_SECONDS = 300
"""Kapso repeats a delivery after 10, 40 and 90 seconds and waits 10 each time; and some to spare.
For so long something signed with the secret of before can arrive."""


class Stopped(Exception):
    """Nothing was changed, because it would lose deliveries; the message says what to do first."""


# What is there


class SecretState(Enum):
    """How the secret that Kapso signs with relates to this site's WEBHOOK_SECRET."""

    CURRENT = "current"
    OLDER = "older"
    FOREIGN = "foreign"
    HIDDEN = "hidden"


SECRETS = {
    SecretState.CURRENT: "the newest of this site's settings",
    SecretState.OLDER: "an older one of this site's settings",
    SecretState.FOREIGN: "none of this site's settings",
    SecretState.HIDDEN: "not shown by Kapso",
}


@dataclass(frozen=True)
class WebhookInspection:
    """The webhooks of the Kapso project: ``mine`` is this site's, ``extra`` deliver everything to
    it once more, ``others`` are none of its business."""

    url: str
    mine: KapsoWebhook | None
    extra: tuple[KapsoWebhook, ...]
    others: tuple[KapsoWebhook, ...]


def webhook_url() -> str:
    """Return the address that Kapso shall post to.

    Raises ImproperlyConfigured, in words for the operator, where there is none.
    """
    origin = get_conf().public_url
    if not origin:
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['PUBLIC_URL'] is not set. Set it to the origin of this site, such as "
            "https://crm.example.com."
        )
    try:
        usable = bool(urlsplit(origin).hostname) and "@" not in origin
    except ValueError:
        usable = False
    if not usable or not origin.startswith(("http://", "https://")):
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['PUBLIC_URL'] is no address. Set it to the origin of this site, such as "
            "https://crm.example.com."
        )
    try:
        return origin + reverse("kapso_connect:webhook")
    except NoReverseMatch:
        raise ImproperlyConfigured(
            "kapso_connect.urls is not in the URLconf. Add "
            'path("whatsapp/", include("kapso_connect.urls")) to urlpatterns.'
        ) from None


def unfit(url: str) -> str:
    """Return why Kapso can never deliver to ``url``, where that is plain; "" for the sandbox."""
    if not get_conf().api_base_url.startswith("https://"):
        return ""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        private = not ipaddress.ip_address(host).is_global
    except ValueError:
        private = host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    if private:
        return (
            f"{host} is an address of your own network: Kapso cannot reach it. Set "
            "KAPSO_CONNECT['PUBLIC_URL'] to where the Internet reaches this site."
        )
    if parts.scheme != "https":
        return (
            "KAPSO_CONNECT['PUBLIC_URL'] is http, and Kapso delivers to https only. Serve this "
            "site by https and set PUBLIC_URL to that."
        )
    return ""


def inspect_webhooks(client: KapsoClient, url: str, *, adopt: str = "") -> WebhookInspection:
    """Ask Kapso which webhooks there are. ``adopt`` is the id of one that counts as this site's
    wherever it points. Raises KapsoError, and Stopped for an unknown ``adopt``."""
    found = list(client.list_webhooks())
    if adopt and all(webhook.id != adopt for webhook in found):
        raise Stopped(f"Kapso knows no webhook {adopt}. Its id is in the plan and in Kapso.")
    here = [webhook for webhook in found if points_to(webhook, url) or webhook.id == adopt]
    here.sort(key=lambda webhook: (webhook.id == adopt, *_merits(webhook, url)), reverse=True)
    others = tuple(webhook for webhook in found if webhook not in here)
    return WebhookInspection(url, here[0] if here else None, tuple(here[1:]), others)


def points_to(webhook: KapsoWebhook, url: str) -> bool:
    """True where a project webhook leads to ``url``, or nearly: by http, or without the last
    slash. Those of one number carry its messages, those of kind "meta" what Meta sends."""
    if webhook.kind != "kapso" or webhook.phone_number_id:
        return False
    try:
        return _place(urlsplit(webhook.url)) == _place(urlsplit(url))
    except ValueError:
        return False


def shown(url: str) -> str:
    """Return ``url`` for a person: without a user's name, a password, or a query, which may be
    as good as one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "no usable address"
    query = "?..." if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def _place(url: SplitResult) -> tuple[str, int | None, str]:
    port = None if url.port == {"http": 80, "https": 443}.get(url.scheme) else url.port
    return url.hostname or "", port, url.path.rstrip("/")


def _merits(webhook: KapsoWebhook, url: str) -> tuple[Any, ...]:
    """What makes the one of several the better to keep, the weightiest first."""
    mine = secret_state(webhook) in {SecretState.CURRENT, SecretState.OLDER}
    events = len(set(EVENTS) & set(webhook.events))
    return webhook.active, mine, webhook.url == url, events, webhook.id


def secret_state(webhook: KapsoWebhook) -> SecretState:
    """Return what Kapso's answer says of the webhook's secret."""
    if webhook.secret is None:
        return SecretState.HIDDEN
    for index, secret in enumerate(get_conf().webhook_secret):
        if webhook.secret.is_same(secret):
            return SecretState.OLDER if index else SecretState.CURRENT
    return SecretState.HIDDEN if webhook.secret.is_masked else SecretState.FOREIGN


# What is to be done


@dataclass(frozen=True)
class Step:
    """One change at Kapso: to ``webhook``, or None to create one. ``why`` has a line for each
    field, without secrets; ``changes`` has the values, the secret among them. ``is_mine`` where it
    leads to this site afterwards."""

    webhook: KapsoWebhook | None
    why: tuple[str, ...]
    changes: Mapping[str, Any] = field(repr=False)
    is_mine: bool = True


def plan(found: WebhookInspection, *, set_secret: bool = False) -> list[Step]:
    """Return what has to be done so that Kapso delivers everything here, once.

    Events that the operator chose besides stay. A secret that Kapso does not show is left as it
    is, unless ``set_secret``; so is an older one of this site's, which deliveries arrive by.
    Raises ImproperlyConfigured where this site has no secret, or no address Kapso delivers to.
    """
    secrets = get_conf().webhook_secret
    if reason := unfit(found.url):
        raise ImproperlyConfigured(reason)
    if not secrets:
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['WEBHOOK_SECRET'] is not set. "
            "manage.py kapso_webhook --new-secret prints a good one."
        )
    if found.mine is None:
        why = (
            f"url: {found.url}",
            f"events: {', '.join(EVENTS)}",
            "active: yes",
            f"payload_version: {PAYLOAD_VERSION}",
            f"secret: {SECRETS[SecretState.CURRENT]}",
        )
        return [Step(None, why, {"url": found.url, "events": EVENTS, "secret_key": secrets[0]})]
    superfluous = [webhook for webhook in found.extra if webhook.active]
    steps = [_repair(found.mine, found.url, superfluous, secrets[0], set_secret)]
    steps += [
        Step(
            webhook,
            ("active: yes -> no, for it delivers everything once more",),
            {"active": False},
            is_mine=False,
        )
        for webhook in superfluous
    ]
    return [step for step in steps if step.changes]


@sensitive_variables("secret", "changes")
def _repair(
    mine: KapsoWebhook,
    url: str,
    superfluous: Sequence[KapsoWebhook],
    secret: str,
    set_secret: bool,
) -> Step:
    why: list[str] = []
    changes: dict[str, Any] = {}
    if mine.url != url:
        why.append(f"url: {shown(mine.url)} -> {url}")
        changes["url"] = url
    wanted = {*EVENTS, *(event for webhook in superfluous for event in webhook.events)}
    if missing := sorted(wanted - set(mine.events)):
        why.append(f"events: add {', '.join(missing)}")
        changes["events"] = [*mine.events, *missing]
    if not mine.active:
        why.append("active: no -> yes (Kapso pauses what fails too often: see that it is repaired)")
        changes["active"] = True
    if mine.payload_version != PAYLOAD_VERSION:
        why.append(f"payload_version: {mine.payload_version or 'none'} -> {PAYLOAD_VERSION}")
        changes["payload_version"] = PAYLOAD_VERSION
    state = secret_state(mine)
    if state is SecretState.FOREIGN or (set_secret and state is not SecretState.CURRENT):
        why.append(f"secret: {SECRETS[state]} -> the newest of this site's settings")
        changes["secret_key"] = secret
    return Step(mine, tuple(why), changes)


def apply_step(client: KapsoClient, step: Step) -> KapsoWebhook:
    """Do one step. Raises KapsoError. A webhook whose creation was not confirmed is looked for
    before it is given up."""
    if step.webhook is not None:
        return client.update_webhook(step.webhook.id, step.changes)
    try:
        return client.create_webhook(**step.changes)
    except KapsoError as error:
        if not error.outcome_unknown:
            raise
        created = inspect_webhooks(client, step.changes["url"]).mine
        if created is None:
            raise
        return created


# Does this site accept what is signed with a secret?


class Outcome(Enum):
    ACCEPTED = "accepted"
    REFUSED = "refused"
    ELSEWHERE = "elsewhere"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Probe:
    """What the site that answers at the webhook's address made of a signature; ``said`` is for the
    operator, and empty where it was accepted."""

    outcome: Outcome
    said: str = ""


@sensitive_variables("secret")
def probe(url: str, secret: str) -> Probe:
    """Post to ``url`` what is signed with ``secret`` and is no delivery: nothing is stored."""
    try:
        answer = _post(url, PROBE, secret)
    except Unreachable as error:
        return Probe(Outcome.UNREACHABLE, f"No answer from {url}: {error}.")
    told = _error_of(answer)
    if (answer.status, told) == (400, NOT_AN_OBJECT):
        return Probe(Outcome.ACCEPTED)
    if (answer.status, told) == (401, WRONG_SIGNATURE):
        return Probe(
            Outcome.REFUSED,
            f"The site that answers at {url} refuses what is signed with a secret of these "
            "settings: it runs with another WEBHOOK_SECRET. Give it the same, and restart it.",
        )
    return Probe(Outcome.ELSEWHERE, f"{url} is not this app's webhook: {_why_elsewhere(answer)}")


def verify_secrets(url: str, secrets: Sequence[str], *, times: int = VERIFICATIONS) -> None:
    """Return where the running site accepts each of ``secrets``, ``times`` times in a row.

    Raises Stopped, saying what is wrong.
    """
    for index, secret in enumerate(secrets, start=1):
        for _ in range(times):
            seen = probe(url, secret)
            if seen.outcome is not Outcome.ACCEPTED:
                raise Stopped(f"Secret {index} of WEBHOOK_SECRET: {seen.said}")


@sensitive_variables("secret")
def _post(url: str, body: bytes, secret: str, *, key: str = "") -> Visit:
    headers = {
        "Content-Type": "application/json",
        "X-Idempotency-Key": key,
        "X-Webhook-Signature": sign(body, secret),
    }
    return visit("POST", url, who="the site", body=body, headers=headers, seconds=SITE_SECONDS)


def _error_of(answer: Visit) -> str:
    try:
        told = json.loads(answer.body)["error"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return told if isinstance(told, str) else ""


def _why_elsewhere(answer: Visit) -> str:
    status = answer.status
    if 300 <= status < 400:
        where = answer.headers.get("location", "another address").partition("?")[0][:200]
        return (
            f"it redirects ({status}) to {where}, and Kapso follows no redirect. Set PUBLIC_URL "
            "to where this site really answers, and let nothing redirect the webhook."
        )
    if status == 400:
        return "it answers 400. Is the host of PUBLIC_URL in ALLOWED_HOSTS?"
    if status in {401, 403}:
        return (
            f"something in front of it refuses ({status}): a login, a firewall. Let POST requests "
            "to this address through."
        )
    if status == 404:
        return (
            "nothing is there (404). Is PUBLIC_URL this site, and is the running site's URLconf "
            "the one of these settings?"
        )
    if status >= 500:
        return f"it fails ({status}). See the site's log."
    return f"it answers {status}. Is PUBLIC_URL this site?"


# Do Kapso's deliveries arrive?


def send_test(client: KapsoClient, webhook: KapsoWebhook, *, seconds: float = 30.0) -> float | None:
    """Have Kapso send a test delivery; return after how many seconds it was in the inbox.

    None where it was not within ``seconds``: see ``why_not_arrived``. Raises KapsoError.
    """
    last = WebhookEvent.objects.aggregate(last=models.Max("pk"))["last"] or 0
    arrived = WebhookEvent.objects.filter(pk__gt=last, event=TEST_EVENT)
    started = time.monotonic()
    client.test_webhook(webhook.id, event_type=TEST_EVENT)
    while not arrived.exists():
        if time.monotonic() - started > seconds:
            return None
        time.sleep(0.25)
    return time.monotonic() - started


def why_not_arrived(webhook: KapsoWebhook, url: str) -> str:
    """Return, for the operator, why a test delivery of Kapso's did not get into the inbox.

    Posts a delivery of its own where the site seems to be well.
    """
    if reason := unfit(url):
        return reason
    secret = get_conf().webhook_secret[0]
    seen = probe(url, secret)
    if seen.outcome is not Outcome.ACCEPTED:
        return seen.said
    key = f"probe-{uuid.uuid4()}"
    body = json.dumps({"event": "kapso_connect.probe", "test": True}).encode()
    try:
        answer = _post(url, body, secret, key=key)
    except Unreachable as error:
        return f"The site does not answer a delivery: {error}."
    if answer.status != 200:
        return (
            f"The site accepts the signature, and answers a delivery with {answer.status}. See "
            "the site's log."
        )
    if not WebhookEvent.objects.filter(idempotency_key=key).exists():
        return (
            f"The site at {url} stores deliveries in another database than the one of these "
            "settings. Run this command with the site's environment."
        )
    state = secret_state(webhook)
    if state is SecretState.FOREIGN:
        return (
            "The site refuses what Kapso signs: Kapso has another secret than these settings. Run: "
            "manage.py kapso_webhook"
        )
    if state is SecretState.HIDDEN:
        return (
            "The site is well as seen from here, and Kapso does not show its secret: it may sign "
            "with another one. Set it with: manage.py kapso_webhook --set-secret. Else Kapso does "
            "not reach the site: see the deliveries in Kapso, and any firewall."
        )
    return (
        "The site is well as seen from here: Kapso does not reach it, or is slow. See the "
        "deliveries in Kapso, and any firewall in front of the site."
    )
