"""The onboarding of a customer, with the package that openapi-python-client generates."""

from __future__ import annotations

import os
import time
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import httpx
from kapso_client import AuthenticatedClient
from kapso_client.api.kapso_batches import (
    kapso_batch_invitations_list,
    kapso_batches_create,
    kapso_batches_work,
)
from kapso_client.api.kapso_connections import (
    kapso_connections_disconnect,
    kapso_connections_retrieve,
)
from kapso_client.api.kapso_customers import (
    kapso_customers_create,
    kapso_customers_list,
    kapso_customers_partial_update,
    kapso_customers_retrieve,
    kapso_customers_send_invitation,
    kapso_customers_status,
)
from kapso_client.api.kapso_setup_links import kapso_setup_links_create
from kapso_client.api.kapso_timeline import kapso_events_list
from kapso_client.models import (
    KapsoBatch,
    KapsoBatchPurpose,
    KapsoBatchRequest,
    KapsoConnection,
    KapsoConnectionType,
    KapsoCustomer,
    KapsoCustomerLanguage,
    KapsoCustomerOrdering,
    KapsoCustomerPage,
    KapsoCustomerPatchRequest,
    KapsoCustomerRequest,
    KapsoError,
    KapsoEventKind,
    KapsoEventPage,
    KapsoInvitationPage,
    KapsoLanguage,
    KapsoNewSetupLink,
    KapsoOnboardingStatus,
    KapsoOptionsRequest,
    KapsoSentEmail,
    KapsoSetupLinkRequest,
    KapsoStatus,
    KapsoStatusConnection,
)
from kapso_client.types import UNSET, Unset

T = TypeVar("T")

prefix, token = os.environ["API_AUTHORIZATION"].split()
api = AuthenticatedClient(
    base_url=os.environ["API_URL"], token=token, prefix=prefix, raise_on_unexpected_status=True
)


def same(actual: object, expected: object, what: str) -> None:
    """Stop unless both are equal."""
    if actual != expected:
        raise SystemExit(f"{what}: {actual!r} instead of {expected!r}")


def expect(kind: type[T], answer: object) -> T:
    """Return the answer, which has to be of this kind."""
    if not isinstance(answer, kind):
        raise SystemExit(f"{answer!r} instead of {kind.__name__}")
    return answer


def connect_number(connect_url: str, hosted_url: str) -> None:
    """Connect a number as the customer does: from the personal link to Kapso's page, and back."""
    same(hosted_url in httpx.post(connect_url).text, True, "that the personal link leads to Kapso")
    last = httpx.post(hosted_url, data={"outcome": "connect"}, follow_redirects=True)
    same((last.status_code, last.url.host), (200, httpx.URL(connect_url).host), "the last page")


def status_of(customer: KapsoCustomer) -> KapsoStatus:
    return expect(KapsoStatus, kapso_customers_status.sync(customer.id, client=api))


def events(**filters: Any) -> KapsoEventPage:
    return expect(KapsoEventPage, kapso_events_list.sync(client=api, **filters))


# Created once, however often it is asked for.
creation = KapsoCustomerRequest(
    "Ada's Bakery", external_customer_id="python-ada", language=KapsoCustomerLanguage.ES
)
created = kapso_customers_create.sync(client=api, body=creation, idempotency_key="python-1")
customer = expect(KapsoCustomer, created)
same(customer.status, KapsoOnboardingStatus.NOT_INVITED, "the status of the new customer")
same(customer.email, None, "the e-mail address of the new customer")
repeated = kapso_customers_create.sync_detailed(
    client=api, body=creation, idempotency_key="python-1"
)
same(repeated.parsed, customer, "the answer to the repeated request")
same(repeated.headers["Idempotent-Replayed"], "true", "Idempotent-Replayed")
minimal = kapso_customers_create.sync(client=api, body=KapsoCustomerRequest("Grace"))
other = expect(KapsoCustomer, minimal)

# Errors have types, too.
refused = kapso_customers_create.sync_detailed(client=api, body=KapsoCustomerRequest(" "))
nameless = expect(KapsoError, refused.parsed)
same((refused.status_code, nameless.code), (HTTPStatus.BAD_REQUEST, "invalid"), "the refusal")
same(nameless.fields["name"][0].code, "blank", "the error of the name")
missing = expect(KapsoError, kapso_customers_retrieve.sync(2**53 - 1, client=api))
same(missing.code, "not_found", "a missing customer")

# Found by name and by status and the site's own ids, and changed.
found = expect(KapsoCustomerPage, kapso_customers_list.sync(client=api, search="bakery"))
same([one.id for one in found.results], [customer.id], "customers by name")
both = kapso_customers_list.sync(
    client=api,
    external_customer_id=["python-ada", expect(str, other.external_customer_id)],
    status=[KapsoOnboardingStatus.NOT_INVITED, KapsoOnboardingStatus.INVITED],
    ordering=KapsoCustomerOrdering.NAME,
)
ids = [one.id for one in expect(KapsoCustomerPage, both).results]
same(ids, [customer.id, other.id], "customers, sorted")
email = KapsoCustomerPatchRequest(email="ada@example.com")
changed = kapso_customers_partial_update.sync(customer.id, client=api, body=email)
customer = expect(KapsoCustomer, changed)
same((customer.name, customer.email), ("Ada's Bakery", "ada@example.com"), "the changed customer")

# A list, page by page.
ids, number_of_page, is_last = [], 1, False
while not is_last:
    answer = kapso_customers_list.sync(client=api, page=number_of_page, page_size=1)
    page = expect(KapsoCustomerPage, answer)
    ids += [one.id for one in page.results]
    number_of_page, is_last = number_of_page + 1, page.next_ is None
same(ids, [other.id, customer.id], "all customers, newest first")

# Invited.
invitation = KapsoSetupLinkRequest(
    customer.id,
    options=KapsoOptionsRequest(
        allowed_connection_types=[KapsoConnectionType.COEXISTENCE], language=KapsoLanguage.ES
    ),
    next_url="/welcome/",
)
invited = kapso_setup_links_create.sync(client=api, body=invitation, idempotency_key="python-2")
link = expect(KapsoNewSetupLink, invited)
same((link.customer, link.token), (customer.id, None), "the setup link")
waiting = kapso_customers_status.sync_detailed(customer.id, client=api)
status = expect(KapsoStatus, waiting.parsed)
same(status.status, KapsoOnboardingStatus.INVITED, "the status after the invitation")
etag = waiting.headers["ETag"]
unchanged = kapso_customers_status.sync_detailed(customer.id, client=api, if_none_match=etag)
same(unchanged.status_code, HTTPStatus.NOT_MODIFIED, "the status while nothing has changed")

# Connected by the customer.
connect_number(expect(str, link.connect_url), expect(str, link.url))
deadline = time.monotonic() + 10
while time.monotonic() < deadline:
    status = status_of(customer)
    if status.status is KapsoOnboardingStatus.CONNECTED:
        break
    time.sleep(0.1)
same(status.status, KapsoOnboardingStatus.CONNECTED, "the status in the end")
number = expect(KapsoStatusConnection, status.connection)
connection = expect(KapsoConnection, kapso_connections_retrieve.sync(number.id, client=api))
same((connection.customer, connection.setup_link), (customer.id, link.id), "the connection")
same(connection.connection_type, "coexistence", "how it is connected")

# The timeline, by cursor, newest first.
kinds: list[str] = []
cursor: str | Unset | None = UNSET
while cursor is not None:
    timeline = events(customer=[customer.id], page_size=2, cursor=cursor)
    kinds += [event.kind for event in timeline.results]
    is_last = timeline.next_ is None
    cursor = None if is_last else parse_qs(urlsplit(timeline.next_ or "").query)["cursor"][0]
same(kinds[-1], "setup_link_created", "the first event")
same(kinds.count("connected"), 1, "how often it was connected")

# Disconnected by staff.
disconnected = kapso_connections_disconnect.sync(number.id, client=api)
same(expect(KapsoConnection, disconnected).status, "disconnected", "the connection in the end")
ends = events(connection=[number.id], kind=[KapsoEventKind.DISCONNECTED])
same([event.source for event in ends.results], ["manual"], "who disconnected it")

# A batch, worked on until it is finished.
request = KapsoBatchRequest(purpose=KapsoBatchPurpose.INVITE, customers=[other.id])
started = kapso_batches_create.sync(client=api, body=request, idempotency_key="python-3")
batch = expect(KapsoBatch, started)
while batch.state != "finished" and time.monotonic() < deadline + 10:
    batch = expect(KapsoBatch, kapso_batches_work.sync(batch.id, client=api))
same(batch.state, "finished", "the batch in the end")
listed = kapso_batch_invitations_list.sync(batch.id, client=api)
invitations = expect(KapsoInvitationPage, listed).results
same([(one.customer, one.status) for one in invitations], [(other.id, "done")], "the invitations")

# Sent by e-mail, once.
email = KapsoCustomerPatchRequest(email="grace@example.com")
expect(KapsoCustomer, kapso_customers_partial_update.sync(other.id, client=api, body=email))
sent, again = (
    kapso_customers_send_invitation.sync(other.id, client=api, idempotency_key="python-4")
    for _ in range(2)
)
same(expect(KapsoSentEmail, sent).to, "grace@example.com", "where the e-mail was sent")
same(again, sent, "the answer to the repeated request for an e-mail")
print("The story was played.")
