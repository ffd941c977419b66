"""The REST API's pages in a browser, as far as no browser is needed to look at them."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ..factories import make_connection, make_customer, make_link
from .support import Caller, code, make_user, staff

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]


def shown(caller: Caller, path: str) -> str:
    answer = caller.get(path, headers={"Accept": "text/html"})
    assert answer.headers["Content-Type"].startswith("text/html")
    return answer.content.decode()


def form(caller: Caller, path: str) -> Any:
    """What the page's form is filled with; None where there is none."""
    found = re.search(r"<textarea[^>]*>(.*?)</textarea>", shown(caller, path), re.S)
    return json.loads(html.unescape(found[1])) if found else None


@pytest.mark.parametrize("path", ["customers/", "setup-links/", "connections/", "events/"])
def test_page_takes_a_constant_number_of_queries(caller: Caller, path: str) -> None:
    def cost() -> int:
        with CaptureQueriesContext(
            connection,
        ) as asked:
            text = shown(caller, path)
        assert "Bäckerei" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.S)
        return len(asked)

    def fill() -> None:
        link = make_link()
        make_connection(link.customer, setup_link=link)

    fill()
    cost()  # the content types and the like are known then
    before = cost()
    for _ in range(5):
        fill()
    assert cost() == before


def test_forms_require_permission() -> None:
    make_link(make_customer(pk=1), pk=1)
    viewer = staff("view_customer", "view_setuplink")
    assert form(viewer, "customers/") is None
    assert form(viewer, "customers/1/") is None
    assert form(viewer, "setup-links/1/revoke/") is None
    may = Caller(make_user("may", "view_customer", "add_customer", "revoke_setup_link"))
    assert form(may, "customers/")["name"] == "Ada's Bakery"
    assert form(may, "setup-links/1/revoke/") == {}


def test_forms_are_filled_in(caller: Caller) -> None:
    customer = make_customer(name="<b>", email="a@example.com", language="ar", kapso_id=None)
    assert form(caller, f"customers/{customer.pk}/") == {
        "name": "<b>",
        "external_customer_id": customer.external_customer_id,
        "email": "a@example.com",
        "language": "ar",
    }
    assert form(caller, "setup-links/")["customer"] is None
    assert form(caller, f"setup-links/?customer={customer.pk}")["customer"] == customer.pk
    assert form(caller, "setup-links/?customer=²")["customer"] is None
    assert form(caller, "batches/")["purpose"] == "invite"
    assert form(caller, "batches/")["customers"] == []


@pytest.mark.urls("tests.sites.tenant_api")
def test_form_of_a_tenant_has_only_permitted_fields() -> None:
    user = make_user("ada", is_staff=False, email="ada@example.com")
    assert set(form(Caller(user, "/tenant/v1/"), "customers/")) == {"name", "email", "language"}
    assert "external_customer_id" in form(Caller(user, "/making/v1/"), "customers/")
    customer = make_customer(email="ada@example.com")
    of_row = form(Caller(user, "/tenant/v1/"), f"customers/{customer.pk}/")
    assert set(of_row) == {"name", "email", "language"}


def test_page_with_an_unreadable_body_is_rendered(caller: Caller) -> None:
    for body in (b"{", b"[]", b"null", b'"x"', b""):
        answer = caller.post("customers/", body, headers={"Accept": "text/html"})
        assert answer.status_code == 400
        assert "Ada" in answer.content.decode()
    answer = caller.post("customers/", {"name": "", "more": 1}, headers={"Accept": "text/html"})
    assert "&quot;more&quot;: 1" in answer.content.decode()
    answer = caller.post("customers/", {"name": "Made"}, headers={"Accept": "text/html"})
    assert answer.status_code == 201
    (area,) = re.findall(r"<textarea.*?</textarea>", answer.content.decode(), re.S)
    assert "Made" not in area  # pressing again makes no second one


def test_throttled_page_is_rendered(caller: Caller, configure: Any) -> None:
    rates = {"read": "2/min", "write": "1/min"}
    configure(API_THROTTLE_RATES=rates)
    for _ in range(2):
        shown(caller, "customers/")
    assert "throttled" in shown(caller, "customers/")
    assert code(caller.get("customers/"), 429) == "throttled"


def test_filter_links_keep_other_filters(caller: Caller) -> None:
    text = html.unescape(shown(caller, "customers/?search=%22>a&status=opened&page=1&cursor=x"))
    assert 'href="?search=' not in text  # cursor is refused: there is no list to narrow
    text = shown(caller, "customers/?search=%22%3Ea&status=opened&page=1")
    opened = "?search=%22%3Ea&amp;status=opened"
    assert f'href="{opened}&amp;status=failed"' in text
    assert 'href="?search=%22%3Ea" aria-current="true"' in text
    assert '<input type="hidden" name="status" value="opened">' in text
    assert 'name="search" value="&quot;&gt;a"' in text


def test_filter_links_add_and_remove_values(caller: Caller) -> None:
    text = shown(caller, "customers/?status=opened&status=failed&external_customer_id=a%22b")
    for query in ("status=failed", "status=opened"):  # the other one is removed
        assert re.search(f'href="[?][^"]*{query}" aria-current="true"', text), query
    assert re.search('status=opened&amp;status=failed&amp;status=invited"', text)
    assert 'a&quot;b <a href="?status=opened&amp;status=failed"' in text
    for value in ("opened", "failed"):
        assert f'<input type="hidden" name="status" value="{value}">' in text
    assert '<input type="hidden" name="external_customer_id" value="a&quot;b">' in text


def test_order_is_replaced_by_a_click(caller: Caller) -> None:
    text = shown(caller, "customers/?ordering=name&status=opened")
    assert 'href="?status=opened&amp;ordering=-name"' in text
    assert 'href="?status=opened&amp;ordering=name" aria-current="true"' in text
    assert re.search('href="[?]status=opened">Newest first', text)


def test_form_is_filled_with_a_customer_only_if_there_is_one(caller: Caller) -> None:
    assert form(caller, "setup-links/?customer=1&customer=2")["customer"] is None
