"""The project webhook at Kapso: inspect it, plan and apply changes, verify that deliveries arrive.

Nothing here prints, and no message contains a secret.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.urls import NoReverseMatch
from django.views.decorators.debug import sensitive_variables

from ..conf import KAPSO_WEBHOOK_TIMEOUT, get_conf
from ..exceptions import KapsoError
from ..kapso.client import KapsoClient
from ..kapso.http import Response, Unreachable, fetch
from ..kapso.types import KapsoWebhook
from ..models import WebhookEvent
from ..utils import host_of, is_private, is_same_target, redact_url, reverse_path
from .number_webhooks import PAYLOAD_VERSION
from .payloads import NOT_AN_OBJECT, PARSERS, SIGNATURE_CHECK_BODY
from .signature import sign
from .views import WRONG_SIGNATURE

SUBSCRIBED_EVENTS = tuple(sorted(PARSERS))
"""The events that Kapso's webhook is subscribed to: all that this app handles."""

TEST_EVENT = "whatsapp.phone_number.reconnected"
"""The event of a test delivery: it connects no number unless the API confirms it."""

VERIFICATIONS = 10
"""How many times the site has to accept a secret: each time another of its processes may answer,
among them one that was not restarted."""

SITE_TIMEOUT = KAPSO_WEBHOOK_TIMEOUT
"""Seconds that the site has for an answer: as many as when Kapso delivers."""

REDELIVERY_SECONDS = 300
"""How long deliveries signed with the previous secret can arrive: Kapso repeats a delivery after
10, 40 and 90 seconds and waits 10 seconds each time. The rest is a safety margin."""


class RegistrationError(Exception):
    """The webhook cannot be registered, changed or tested; the message says what to do first."""


# Inspecting


class SecretState(models.TextChoices):
    """How the secret that Kapso signs with compares with this site's WEBHOOK_SECRET."""

    CURRENT = "current", "the newest secret in this site's settings"
    OLDER = "older", "an older secret in this site's settings"
    FOREIGN = "foreign", "a secret that is not in this site's settings"
    HIDDEN = "hidden", "a secret that Kapso does not show"


@dataclass(frozen=True)
class WebhookInspection:
    """The webhooks of the Kapso project: ``mine`` is this site's, ``extra`` deliver to this site,
    too, and ``others`` deliver elsewhere. ``url`` is where this site's webhook should deliver."""

    url: str
    mine: KapsoWebhook | None
    extra: tuple[KapsoWebhook, ...]
    others: tuple[KapsoWebhook, ...]

    @property
    def duplicates(self) -> tuple[KapsoWebhook, ...]:
        """The ``extra`` webhooks that are active: with them, everything is delivered again."""
        return tuple(webhook for webhook in self.extra if webhook.active)


def webhook_url() -> str:
    """Return the URL that Kapso should deliver webhooks to.

    Raise ImproperlyConfigured if there is none; the message says which setting to change.
    """
    origin = get_conf().public_url
    if not origin:
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['PUBLIC_URL'] is not set. Set it to the origin of this site, such as "
            "https://crm.example.com."
        )
    # A user name, a password and a query would be shown wherever the URL is.
    secret_parts = set("@?#") & set(origin)
    if not origin.startswith(("http://", "https://")) or not host_of(origin) or secret_parts:
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['PUBLIC_URL'] is not a URL. Set it to the origin of this site, such as "
            "https://crm.example.com."
        )
    try:
        return origin + reverse_path("kapso_connect:webhook")
    except NoReverseMatch:
        raise ImproperlyConfigured(
            "kapso_connect.urls is not in the URLconf. Add "
            'path("whatsapp/", include("kapso_connect.urls")) to urlpatterns.'
        ) from None


def undeliverable_reason(url: str) -> str:
    """Return why Kapso can certainly not deliver to ``url``, or "". The sandbox always can."""
    if not get_conf().api_base_url.startswith("https://"):
        return ""
    if is_private(url):
        return (
            f"{host_of(url)} is on a private network: Kapso cannot reach it. Set "
            "KAPSO_CONNECT['PUBLIC_URL'] to the URL of this site on the Internet."
        )
    if not url.startswith("https://"):
        return (
            "KAPSO_CONNECT['PUBLIC_URL'] starts with http://, and Kapso delivers only to https "
            "URLs. Serve this site over https and change PUBLIC_URL."
        )
    return ""


def inspect_webhooks(client: KapsoClient, url: str, *, adopt: str = "") -> WebhookInspection:
    """Return the webhooks of the Kapso project. ``adopt`` is the id of one that counts as this
    site's wherever it delivers to. Raise KapsoError, and RegistrationError for an unknown
    ``adopt``."""
    found = list(client.list_webhooks())
    if adopt and all(webhook.id != adopt for webhook in found):
        raise RegistrationError(
            f"Kapso has no webhook {adopt}. This command and Kapso show the ids of the webhooks."
        )
    here = [webhook for webhook in found if points_to(webhook, url) or webhook.id == adopt]
    here.sort(key=lambda webhook: (webhook.id == adopt, *_preference(webhook, url)), reverse=True)
    others = tuple(webhook for webhook in found if webhook not in here)
    return WebhookInspection(url, here[0] if here else None, tuple(here[1:]), others)


def points_to(webhook: KapsoWebhook, url: str) -> bool:
    """Return True if a project webhook delivers to ``url``, or to the same without https or the
    last slash. Webhooks of one number deliver its messages, those of kind "meta" deliver what Meta
    sends: neither counts."""
    if webhook.kind != "kapso" or webhook.phone_number_id:
        return False
    return is_same_target(webhook.url, url)


def _preference(webhook: KapsoWebhook, url: str) -> tuple[Any, ...]:
    """Return a sort key: of several webhooks the one with the largest is kept."""
    has_our_secret = secret_state(webhook) in {SecretState.CURRENT, SecretState.OLDER}
    subscribed = count_subscribed_events(webhook)
    return webhook.active, has_our_secret, webhook.url == url, subscribed, webhook.id


def count_subscribed_events(webhook: KapsoWebhook) -> int:
    """Return how many of SUBSCRIBED_EVENTS the webhook delivers."""
    return len(set(SUBSCRIBED_EVENTS) & set(webhook.events))


@sensitive_variables()
def secret_state(webhook: KapsoWebhook) -> SecretState:
    """Return how the webhook's secret compares with this site's, as far as Kapso shows it."""
    if webhook.secret_key is None:
        return SecretState.HIDDEN
    for index, secret in enumerate(get_conf().webhook_secret):
        if webhook.secret_key.is_same(secret):
            return SecretState.OLDER if index else SecretState.CURRENT
    return SecretState.HIDDEN if webhook.secret_key.is_masked else SecretState.FOREIGN


# Planning and applying changes


@dataclass(frozen=True)
class Step:
    """One change at Kapso, to ``webhook``; None creates one.

    ``descriptions`` has a line for each field, without secrets; ``changes`` has the values, among
    them the secret. ``is_mine`` is True if the webhook delivers to this site afterwards.
    """

    webhook: KapsoWebhook | None
    descriptions: tuple[str, ...]
    changes: Mapping[str, Any] = field(repr=False)
    is_mine: bool = True


def plan(found: WebhookInspection, *, set_secret: bool = False) -> list[Step]:
    """Return the changes after which Kapso delivers each event to this site once.

    Other events that the webhook is subscribed to stay. A secret that Kapso does not show, or an
    older one of this site's, which it still accepts, is only replaced with ``set_secret``.
    Raise ImproperlyConfigured if this site has no secret, or Kapso cannot deliver to its URL.
    """
    if reason := undeliverable_reason(found.url):
        raise ImproperlyConfigured(reason)
    if not get_conf().webhook_secret:
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['WEBHOOK_SECRET'] is not set. "
            "manage.py kapso_webhook --new-secret prints a new one."
        )
    if found.mine is None:
        return [_creation(found.url)]
    steps = [_repair(found, found.mine, set_secret)]
    reason = "active: yes -> no, because it delivers everything a second time"
    steps += [
        Step(webhook, (reason,), {"active": False}, is_mine=False) for webhook in found.duplicates
    ]
    return [step for step in steps if step.changes]


@sensitive_variables()
def _creation(url: str) -> Step:
    return Step(
        None,
        (
            f"url: {url}",
            f"events: {', '.join(SUBSCRIBED_EVENTS)}",
            "active: yes",
            f"payload_version: {PAYLOAD_VERSION}",
            f"secret: {SecretState.CURRENT.label}",
        ),
        {"url": url, "events": SUBSCRIBED_EVENTS, "secret_key": get_conf().webhook_secret[0]},
    )


@sensitive_variables()
def _repair(found: WebhookInspection, mine: KapsoWebhook, set_secret: bool) -> Step:
    descriptions: list[str] = []
    changes: dict[str, Any] = {}
    if mine.url != found.url:
        descriptions.append(f"url: {redact_url(mine.url)} -> {found.url}")
        changes["url"] = found.url
    wanted = {*SUBSCRIBED_EVENTS, *(event for one in found.duplicates for event in one.events)}
    if missing := sorted(wanted - set(mine.events)):
        descriptions.append(f"events: add {', '.join(missing)}")
        changes["events"] = [*mine.events, *missing]
    if not mine.active:
        descriptions.append(
            "active: no -> yes (Kapso pauses a webhook that fails too often: see the site's log)"
        )
        changes["active"] = True
    if mine.payload_version != PAYLOAD_VERSION:
        was = mine.payload_version or "none"
        descriptions.append(f"payload_version: {was} -> {PAYLOAD_VERSION}")
        changes["payload_version"] = PAYLOAD_VERSION
    state = secret_state(mine)
    if state is SecretState.FOREIGN or (set_secret and state is not SecretState.CURRENT):
        descriptions.append(f"secret: {state.label} -> {SecretState.CURRENT.label}")
        changes["secret_key"] = get_conf().webhook_secret[0]
    return Step(mine, tuple(descriptions), changes)


@sensitive_variables()
def apply_step(client: KapsoClient, step: Step) -> KapsoWebhook:
    """Make one change at Kapso and return the webhook. Raise KapsoError.

    If Kapso did not confirm a creation, the webhook is returned if it exists all the same.
    """
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


# Does the running site accept a signature?


@dataclass(frozen=True)
class SignatureCheck:
    """Whether the site at the webhook's URL accepts a signature: True, False, or None if this app's
    webhook did not answer. ``message`` says why not."""

    accepted: bool | None
    message: str = ""


@sensitive_variables()
def check_signature(url: str, secret: str) -> SignatureCheck:
    """Post to ``url`` a body signed with ``secret`` that is not a delivery: nothing is stored."""
    try:
        answer = _post(url, SIGNATURE_CHECK_BODY, secret)
    except Unreachable as error:
        return SignatureCheck(None, f"No answer from {url}: {error}.")
    try:
        error_text = json.loads(answer.body)["error"]
    except (ValueError, RecursionError, LookupError, TypeError):
        error_text = None
    if (answer.status, error_text) == (400, NOT_AN_OBJECT):
        return SignatureCheck(True)
    if (answer.status, error_text) == (401, WRONG_SIGNATURE):
        return SignatureCheck(
            False,
            f"The site at {url} rejects signatures made with the secret in these settings: it is "
            "running with a different WEBHOOK_SECRET. Set the same one there, and restart it.",
        )
    return SignatureCheck(None, f"{url} is not this app's webhook: {_describe_other_site(answer)}")


@sensitive_variables()
def post_check(url: str, secret: str) -> int:
    """Post to the site's own view at ``url`` a body that is not a delivery, signed with ``secret``,
    or unsigned if that is empty. Return the status of the answer. Raise Unreachable."""
    return _post(url, SIGNATURE_CHECK_BODY, secret).status


@sensitive_variables()
def verify_secrets(url: str, secrets: Sequence[str]) -> None:
    """Check that the running site accepts each of ``secrets``, VERIFICATIONS times in a row.

    Raise RegistrationError if it does not; the message says what is wrong.
    """
    for index, secret in enumerate(secrets, start=1):
        for _ in range(VERIFICATIONS):
            check = check_signature(url, secret)
            if not check.accepted:
                raise RegistrationError(f"Secret {index} of WEBHOOK_SECRET: {check.message}")


@sensitive_variables()
def _post(url: str, body: bytes, secret: str, *, key: str = "") -> Response:
    headers = {"Content-Type": "application/json", "X-Idempotency-Key": key}
    if secret:
        headers["X-Webhook-Signature"] = sign(body, secret)
    return fetch("POST", url, server="the site", body=body, headers=headers, timeout=SITE_TIMEOUT)


def _describe_other_site(answer: Response) -> str:
    status = answer.status
    if 300 <= status < 400:
        target = answer.headers.get("location", "another URL").partition("?")[0][:200]
        return (
            f"it redirects ({status}) to {target}, and Kapso does not follow redirects. Set "
            "PUBLIC_URL to the final URL of this site, and do not redirect the webhook."
        )
    if status == 400:
        return "it answers 400. Is the host of PUBLIC_URL in ALLOWED_HOSTS?"
    if status in {401, 403}:
        return (
            f"something in front of it refuses ({status}), such as a login or a firewall. Let POST "
            "requests to this URL through."
        )
    if status == 404:
        return (
            "nothing is there (404). Is PUBLIC_URL this site, and does the running site have the "
            "URLconf of these settings?"
        )
    if status >= 500:
        return f"it fails ({status}). See the site's log."
    return f"it answers {status}. Is PUBLIC_URL this site?"


# Do deliveries arrive?


def send_test_delivery(
    client: KapsoClient, webhook: KapsoWebhook, *, timeout: float
) -> float | None:
    """Have Kapso send a test delivery; return after how many seconds it was in the inbox.

    Return None if it was not within ``timeout`` seconds: see ``explain_missing_delivery``. Raise
    KapsoError.
    """
    last = WebhookEvent.objects.aggregate(last=models.Max("pk"))["last"] or 0
    arrived = WebhookEvent.objects.filter(pk__gt=last, event=TEST_EVENT)
    started = time.monotonic()
    client.test_webhook(webhook.id, event_type=TEST_EVENT)
    while not arrived.exists():
        if time.monotonic() - started > timeout:
            return None
        time.sleep(0.25)
    return time.monotonic() - started


@sensitive_variables()
def explain_missing_delivery(webhook: KapsoWebhook, url: str) -> str:
    """Return why a test delivery from Kapso is not in the inbox, and what to do about it.

    Posts a delivery of its own if the site accepts signatures.
    """
    if reason := undeliverable_reason(url):
        return reason
    secret = get_conf().webhook_secret[0]
    check = check_signature(url, secret)
    if not check.accepted:
        return check.message
    key = f"probe-{uuid.uuid4()}"
    body = json.dumps({"event": "kapso_connect.probe", "test": True}).encode()
    try:
        answer = _post(url, body, secret, key=key)
    except Unreachable as error:
        return f"The site does not answer a delivery: {error}."
    if answer.status != 200:
        return (
            f"The site accepts the signature, but answers a delivery with {answer.status}. See "
            "the site's log."
        )
    if not WebhookEvent.objects.filter(idempotency_key=key).exists():
        return (
            f"The site at {url} stores deliveries in a different database from the one in these "
            "settings. Run this command with the site's environment."
        )
    state = secret_state(webhook)
    if state is SecretState.FOREIGN:
        return (
            "The site rejects Kapso's signatures, because Kapso has a different secret. Run: "
            "manage.py kapso_webhook"
        )
    if state is SecretState.HIDDEN:
        return (
            "The site works as seen from here. Kapso does not show its secret, so it may sign with "
            "another one; set it with: manage.py kapso_webhook --set-secret. Otherwise, Kapso does "
            "not reach the site: see the deliveries in Kapso, and check firewalls."
        )
    return (
        "The site works as seen from here: Kapso does not reach it, or is slow. See the deliveries "
        "in Kapso, and check firewalls in front of the site."
    )
