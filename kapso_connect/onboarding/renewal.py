"""The setup link of the day: the one that works now, made where the last one does not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone

from ..conf import get_conf
from ..exceptions import (
    AlreadyConnected,
    InvitationWithdrawn,
    KapsoError,
    KapsoNotFound,
    RenewalInProgress,
    TryLater,
)
from ..kapso.client import KapsoClient
from ..log import log_event
from ..models import Connection, Customer, SetupLink, Source
from .numbers import apply_remote_number
from .setup_links import CLOCKS_APART, apply_remote_link, revoke_setup_link, setup_link_steps
from .steps import run

ENDING_CODES = {"link_expired", "already_used"}
"""Error codes after which a setup link leads nowhere."""

NAP = 0.1
"""Seconds between two looks at whether another request has made the link."""


def latest_setup_link(customer: Customer) -> SetupLink | None:
    """Return the link that says where ``customer`` stands; None where nobody was invited."""
    link = (
        SetupLink.objects.filter(customer=customer, is_latest=True)
        .order_by("-created_at", "-pk")
        .first()
    )
    if link is not None:
        link.customer = customer
    return link


def is_finished(customer: Customer, newest: SetupLink | None) -> bool:
    """True where ``customer`` has nothing left to do: a number is connected, and the ``newest``
    link is not an invitation to connect another one."""
    connected = Connection.objects.filter(customer=customer, status=Connection.Status.CONNECTED)
    return not _is_open(newest) and connected.exists()


def _is_open(link: SetupLink | None) -> bool:
    return (
        link is not None
        and link.setup_status != SetupLink.SetupStatus.COMPLETED
        and link.status != SetupLink.Status.REVOKED
    )


def usable_setup_link(customer: Customer) -> SetupLink:
    """Return a setup link that ``customer`` can follow now; make one where the last has ended.

    It has ended when it expired, was used up, or a newer one (made in Kapso's own pages) replaced
    it. The new one has its options and ``next_url``. However many ask at the same moment, one link
    is made: a second one would revoke the first, with a customer on its way there.
    The API has ``REQUEST_BUDGET`` for all of it. While it is away, a link that works as far as
    this site knows is returned unasked.

    Raises InvitationWithdrawn, AlreadyConnected, RenewalInProgress; a KapsoError where Kapso refuses or is away,
    InvalidOptions and ImproperlyConfigured as ``create_setup_link``. Do not call it inside a
    transaction.
    """
    newest = latest_setup_link(customer)
    if is_finished(customer, newest):
        raise AlreadyConnected
    if newest is None:
        raise InvitationWithdrawn
    with KapsoClient.from_settings(budget=get_conf().request_budget) as client:
        try:
            works = _works(newest, client)
        except KapsoError as error:
            if not newest.is_usable or newest.last_error_code in ENDING_CODES:
                raise
            log_event(
                "setup_link.unchecked",
                setup_link_id=newest.pk,
                customer_id=customer.pk,
                error=str(error),
            )
            works = True
        return newest if works else _renew(newest, client)


def _works(link: SetupLink, client: KapsoClient) -> bool:
    """Ask Kapso whether ``link`` can be followed; record what is news."""
    customer = link.customer
    if link.status == SetupLink.Status.EXPIRED or not customer.kapso_id:
        return False
    since = link.created_at - CLOCKS_APART
    try:
        listed = list(client.list_setup_links(customer.kapso_id, created_after=since))
    except KapsoNotFound:  # Kapso has forgotten the customer, and with it the link.
        return False
    mine = next((remote for remote in listed if remote.id == link.kapso_id), None)
    if link.status == SetupLink.Status.ACTIVE:
        apply_remote_link(link, mine)
    if mine is not None and mine.whatsapp_setup_status == SetupLink.SetupStatus.COMPLETED:
        _look_for_numbers(customer, client)
        if is_finished(customer, latest_setup_link(customer)):
            raise AlreadyConnected
        return False
    if mine is not None and link.status == SetupLink.Status.REVOKED:
        if any(remote.created_at > mine.created_at for remote in listed):
            return False
        raise InvitationWithdrawn
    return link.is_usable and link.last_error_code not in ENDING_CODES


def _look_for_numbers(customer: Customer, client: KapsoClient) -> None:
    """Record the customer's numbers: nobody told us of the one that the link led to."""
    asked_at = timezone.now()
    for remote in client.list_phone_numbers(customer_id=customer.kapso_id):
        if remote.customer_id == customer.kapso_id:
            with suppress(TryLater):
                apply_remote_number(customer, remote, asked_at=asked_at, source=Source.SYNC)


def _renew(link: SetupLink, client: KapsoClient) -> SetupLink:
    customer, now = link.customer, timezone.now()
    key = customer.connect_key
    # Longer than the API can take, so that it ends only where its process did not live to end it.
    lease = timedelta(seconds=get_conf().request_budget + 10)
    free = Q(renewing_at=None) | Q(renewing_at__lt=now - lease)
    links = SetupLink.objects.filter(pk=link.pk)
    # Whether an earlier attempt made a link is not known: its link is taken then.
    since = links.values_list("renewing_at", flat=True).first()
    if not links.filter(free, is_latest=True).update(renewing_at=now):
        return _made_by_another(link)
    steps = setup_link_steps(
        customer, options=_lasting(link.options), next_url=link.next_url, since=since
    )
    try:
        made = run(steps, client)
    except Exception as error:
        if not (isinstance(error, KapsoError) and error.outcome_unknown):
            links.update(renewing_at=since)
        raise
    if customer.connect_key != key:  # Staff took the invitation back meanwhile.
        revoke_setup_link(made, client=client)
        raise InvitationWithdrawn
    return made


def _lasting(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` without this site's own addresses, which may have changed since."""
    return {name: value for name, value in options.items() if not name.endswith("_redirect_url")}


def _made_by_another(link: SetupLink) -> SetupLink:
    give_up_at = time.monotonic() + get_conf().request_budget
    while True:
        newest = latest_setup_link(link.customer)
        if newest is None:
            raise InvitationWithdrawn
        if newest.pk != link.pk:
            return newest
        if newest.renewing_at is None or time.monotonic() > give_up_at:
            raise RenewalInProgress
        time.sleep(NAP)
