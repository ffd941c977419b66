"""The mixin in ModelAdmins of a site's own, and in this package's: the list and the panel."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape, strip_tags

from kapso_connect.admin import SetupLinkAdminMixin
from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.models import Customer
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.onboarding.status import OnboardingStatus

from ..factories import make_connection, make_link
from ..sites.host_site.admin import ShopAdmin
from ..sites.host_site.models import Bakery, Branch, Franchise, Shop

pytestmark = pytest.mark.django_db

ACTION = "create_setup_links"


def url(model: Any, view: str = "changelist", *args: object, site: str = "admin") -> str:
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}"
    return reverse(name, args=args, current_app=site)


def change_url(obj: Any, site: str = "admin") -> str:
    return url(type(obj), "change", quote(obj.pk), site=site)


def read(client: Client, address: str) -> str:
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


def text_of(html: str) -> str:
    return " ".join(strip_tags(html).split())


def cells(client: Client, address: str) -> list[str]:
    """The column of a list, as text."""
    found = re.findall(r'<td class="field-whatsapp_status">(.*?)</td>', read(client, address))
    return [text_of(re.sub(r"</span>", " </span>", cell)) for cell in found]


def queries(client: Client, address: str) -> int:
    with CaptureQueriesContext(database) as context:
        assert client.get(address).status_code == 200
    return len(context)


def new_bakery(title: str = "Ada's") -> tuple[Bakery, Customer]:
    bakery = Bakery.objects.create(title=title)
    return bakery, Customer.objects.for_owner(bakery, name=title)


DISCONNECTED = {
    "status": "disconnected",
    "connected_at": timezone.now() - timedelta(days=2),
    "disconnected_at": timezone.now() - timedelta(days=1),
}
NUMBER = {"display_phone_number": "+52 55 1234 5678"}
FORMATTED = "+52 55 1234 5678"
TEST_NUMBER = {"display_phone_number": "+1 555-123-4567"}
SOON = {"expires_at": timezone.now() + timedelta(days=9)}
OVER = {"expires_at": timezone.now() - timedelta(hours=1)}
USED = {"status": "used", "setup_status": "completed"}

CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any] | None]] = [
    ("Not invited", [], None),
    ("Not invited", [], {"status": "revoked"}),
    ("Invited", [], {}),
    ("Invited the setup link has expired", [], OVER),
    ("Invited the setup link has expired", [], {"status": "expired"}),
    ("Opened", [], {"opened_at": timezone.now()}),
    ("Opened the setup link has expired", [], {"opened_at": timezone.now(), **OVER}),
    ("Being confirmed", [], {"unconfirmed_since": timezone.now()}),
    (
        f"Failed {SETUP_ERRORS['waba_limit_reached'].title}",
        [],
        {"setup_status": "failed", "last_error_code": "waba_limit_reached"},
    ),
    (
        "Failed WhatsApp could not be connected (meteor)",
        [],
        {"setup_status": "failed", "last_error_code": "meteor"},
    ),
    ("Failed", [], {"setup_status": "failed"}),
    (f"Connected {FORMATTED}", [NUMBER], None),
    (f"Connected {FORMATTED} +2 more", [{}, {}, NUMBER], {}),
    ("Connected Test number +1 555-123-4567", [TEST_NUMBER], None),
    ("Connected 123", [{"phone_number_id": "123"}], None),
    (f"Disconnected {FORMATTED}", [{**NUMBER, **DISCONNECTED}], None),
    (
        f"Paused by Meta {FORMATTED} Not back after an hour: let the customer reconnect it",
        [{**NUMBER, **DISCONNECTED, "disconnect_reason": "offboarded"}],
        None,
    ),
    *(
        (
            f"Disconnected {FORMATTED} {text}",
            [{**NUMBER, **DISCONNECTED, "disconnect_reason": reason}],
            None,
        )
        for reason, text in [
            ("deleted", "removed from Kapso"),
            ("partner_removed", "the customer withdrew Kapso's access"),
            ("moved", "connected by another customer"),
            ("not_found", "no longer known to Kapso"),
            ("staff", "by a member of staff"),
            ("no_customer", "no longer this customer's at Kapso"),
            ("ACCOUNT_DELETED", "ACCOUNT_DELETED"),
        ]
    ),
]


def create_rows(
    customer: Customer, numbers: list[dict[str, Any]], link: dict[str, Any] | None
) -> Customer:
    if link is not None:
        make_link(customer, is_latest=True, **link)
    for fields in numbers:
        make_connection(customer, **fields)
    return customer


def test_the_column_and_the_panel_show_the_status(admin_client: Client) -> None:
    bakeries = []
    for _text, numbers, link in CASES:
        bakery, customer = new_bakery()
        create_rows(customer, numbers, link)
        bakeries.append(bakery)
    expected = [escape(text) for text, _numbers, _link in reversed(CASES)]
    assert cells(admin_client, url(Bakery) + "?o=-1") == expected
    assert cells(admin_client, url(Customer) + "?o=-1") == expected
    for bakery, (text, _numbers, _link) in zip(bakeries, CASES, strict=True):
        panel = re.search("<section.*?</section>", read(admin_client, change_url(bakery)), re.S)
        assert panel
        assert escape(text).split()[0] in text_of(panel[0]), text


def test_texts_from_kapso_are_escaped(admin_client: Client) -> None:
    _bakery, customer = new_bakery()
    make_connection(customer, **DISCONNECTED, disconnect_reason="<b>x</b>")
    other = Customer.objects.for_owner(Bakery.objects.create(title="b"))
    make_link(other, is_latest=True, setup_status="failed", last_error_code="<i>")
    page = read(admin_client, url(Bakery))
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "&lt;i&gt;" in page
    assert "<b>x" not in page


def test_an_object_without_a_customer_was_not_invited(admin_client: Client) -> None:
    Shop.objects.create(name="a")
    assert cells(admin_client, url(Shop)) == ["Not invited"]


def fill(start: int, count: int) -> None:
    for number in range(start, start + count):
        _bakery, customer = new_bakery(f"Bakery {number}")
        make_connection(customer, **DISCONNECTED)
        make_connection(customer, **NUMBER)
        make_link(customer, is_latest=True, created_by=User.objects.get_or_create(username="x")[0])
        Bakery.objects.create(title="Nobody's")


@pytest.mark.parametrize("model", [Bakery, Customer], ids=["site", "package"])
@pytest.mark.parametrize("query", ["", "?whatsapp_status=connected", "?o=-1&all=", "?_facets=True"])
def test_a_longer_list_costs_no_more_queries(admin_client: Client, model: Any, query: str) -> None:
    fill(0, 1)
    admin_client.get(url(model))
    few = queries(admin_client, url(model) + query)
    fill(1, 4)
    assert queries(admin_client, url(model) + query) == few


@pytest.mark.parametrize("model", [Bakery, Customer], ids=["site", "package"])
def test_the_filter_agrees_with_the_column(admin_client: Client, model: Any) -> None:
    for text, numbers, link in CASES:
        create_rows(new_bakery(text)[1], numbers, link)
    everybody = cells(admin_client, url(model))
    for status in OnboardingStatus:
        expected = [cell for cell in everybody if cell.startswith(str(status.label))]
        found = cells(admin_client, f"{url(model)}?whatsapp_status={status}")
        assert found == expected != []


@pytest.mark.parametrize("value", ["nonsense", "", "connected%00", "x" * 5000])
def test_unknown_status_filters_nothing(admin_client: Client, value: str) -> None:
    new_bakery()
    assert len(cells(admin_client, f"{url(Bakery)}?whatsapp_status={value}")) == 1


def test_the_list_can_still_be_edited(admin_client: Client) -> None:
    bakery, customer = new_bakery()
    make_connection(customer, **NUMBER)
    data = {"form-TOTAL_FORMS": 1, "form-INITIAL_FORMS": 1, "form-0-id": bakery.pk, "_save": "Save"}
    assert admin_client.post(url(Bakery), data).status_code == 302
    bakery.refresh_from_db()
    assert bakery.opened is False


def test_the_sites_own_columns_filters_actions_and_scripts_stay(admin_client: Client) -> None:
    new_bakery()
    response = admin_client.get(url(Bakery))
    changelist = response.context["cl"]
    assert changelist.list_display == ["action_checkbox", "title", "opened", "whatsapp_status"]
    page = response.content.decode()
    assert "?opened__exact=1" in page
    assert "?whatsapp_status=confirming" in page
    for name in ("host_site/own.js", "kapso_connect/admin.js", "kapso_connect/admin.css"):
        assert page.count(name) == 1


def test_nothing_is_added_twice(rf: Any, admin_user: User) -> None:
    from django.contrib import admin

    from kapso_connect.admin import SetupLinkAdminMixin
    from kapso_connect.admin.status import AttentionFilter, StatusFilter

    class Placed(SetupLinkAdminMixin, admin.ModelAdmin):
        list_display = ("whatsapp_status", "name")
        list_filter = (AttentionFilter, StatusFilter)

    request = rf.get("/")
    request.user = admin_user
    placed = Placed(Shop, admin.site)
    assert placed.get_list_display(request) == ("whatsapp_status", "name")
    assert list(placed.get_list_filter(request)) == [AttentionFilter, StatusFilter]


# The panel


NEXT: list[tuple[str, str, dict[str, Any]]] = [
    ("not_invited", "invite", {}),
    ("invited", "email", {"link": {}}),
    ("invited", "share", {"link": {}, "email": ""}),
    ("invited", "email", {"link": OVER}),
    ("invited", "email", {"link": {"status": "expired"}}),
    ("opened", "email", {"link": {"opened_at": timezone.now()}}),
    ("failed", "email", {"link": {"setup_status": "failed", "last_error_code": "x"}}),
    ("confirming", "", {"link": {"unconfirmed_since": SOON["expires_at"]}}),
    ("confirming", "confirm", {"link": {"unconfirmed_since": OVER["expires_at"]}}),
    ("connected", "health", {"numbers": [NUMBER], "link": {}}),
    ("disconnected", "reconnect", {"numbers": [{**NUMBER, **DISCONNECTED}]}),
    ("disconnected", "invite", {"numbers": [DISCONNECTED]}),
    ("disconnected", "email", {"numbers": [DISCONNECTED], "link": USED}),
]

MANAGING = [
    "view_bakery",
    "create_setup_link",
    "send_setup_link",
    "extend_setup_link",
    "revoke_setup_link",
    "reconnect_number",
    "check_health",
    "disconnect_number",
]


def invited_bakery(email: str = "a@example.com") -> tuple[Bakery, Customer]:
    bakery = Bakery.objects.create(title="Ada's", contact=email)
    customer = Customer.objects.for_owner(bakery, name="Ada's", connect_key=f"key-{bakery.pk}")
    return bakery, customer


def buttons(client: Client, obj: Any, site: str = "admin") -> list[tuple[str, str]]:
    """URL and classes of each button of the panel."""
    page = read(client, change_url(obj, site=site))
    panel = page[page.index('class="module kapso-panel"') : page.index("</section>")]
    links = re.findall(r'<a class="(button[^"]*)" href="([^"]*)"', panel)
    forms = re.findall(
        r'<form method="post" action="([^"]*)">(?:<input[^>]*>)*'
        r'<button type="submit" class="([^"]*)"',
        panel,
    )
    return [*((url, classes) for classes, url in links), *forms]


def actions(client: Client, obj: Any) -> dict[str, bool]:
    """The names of what is offered, and whether it is the one thing to do now."""
    return {
        re.findall(r"whatsapp/(?:[^/]+/)?([a-z]+)/", url)[0]: "kapso-next" in classes
        for url, classes in buttons(client, obj)
    }


@pytest.mark.parametrize(("status", "name", "given"), NEXT)
def test_one_action_is_highlighted(
    admin_client: Client, status: str, name: str, given: dict[str, Any]
) -> None:
    bakery, customer = invited_bakery(given.get("email", "a@example.com"))
    create_rows(customer, given.get("numbers", []), given.get("link"))
    assert admin_client.get(change_url(bakery)).context["kapso"]["status"].status == status
    assert [n for n, is_next in actions(admin_client, bakery).items() if is_next] == [
        *([name] if name else [])
    ]


@pytest.mark.parametrize("email", ["a@example.com", ""])
def test_the_highlighted_action_comes_first(admin_client: Client, email: str) -> None:
    bakery, customer = invited_bakery(email)
    create_rows(customer, [], SOON)
    offered = actions(admin_client, bakery)
    assert len(offered) >= 6
    assert next(iter(offered.values()))


@pytest.mark.parametrize("missing", MANAGING[1:])
def test_only_what_is_permitted_is_offered(staff: Callable[..., Client], missing: str) -> None:
    bakery, customer = invited_bakery()
    create_rows(customer, [NUMBER], SOON)
    names = {
        "create_setup_link": {"invite", "share", "qr"},
        "send_setup_link": {"email", "share", "qr"},
        "extend_setup_link": {"extend"},
        "revoke_setup_link": {"revoke"},
        "reconnect_number": {"reconnect"},
        "check_health": {"health"},
        "disconnect_number": {"disconnect"},
    }
    client = staff(*(name for name in MANAGING if name != missing))
    everything = set().union(*names.values())
    assert set(actions(client, bakery)) == everything - names[missing]


def test_every_action_has_a_page(admin_client: Client) -> None:
    for obj in (invited_bakery()[0], Branch.objects.create(code="a-1_/x")):
        customer = Customer.objects.for_owner(obj, connect_key="y" * 9)
        create_rows(customer, [NUMBER], SOON)
        offered = buttons(admin_client, obj)
        assert len(offered) >= 7
        for address, _classes in offered:
            is_post = "/invite/" in address or "/health/" in address
            assert admin_client.get(address).status_code == (405 if is_post else 200), address


def test_users_who_may_only_view_see_all_but_the_url(staff: Callable[..., Client]) -> None:
    bakery, customer = invited_bakery()
    create_rows(customer, [{**NUMBER, "verified_name": "Ada Bakery"}], {})
    customer.events.create(kind="setup_link_sent", source="manual", data={"channel": "email"})
    page = read(staff("view_bakery"), change_url(bakery))
    assert connect_url(customer) not in page
    assert "hidden (needs the permission" in page
    for text in (FORMATTED, "Ada Bakery", "by e-mail", "Connected"):
        assert text in page
    assert "button" not in page[page.index("kapso-panel") : page.index("</section>")]


def test_the_timeline_says_what_happened_and_who_did_it(admin_client: Client) -> None:
    bakery, customer = invited_bakery()
    user = User.objects.create_user("grace")
    number = make_connection(customer, **NUMBER)
    for kind, fields in {
        "setup_link_sent": {"actor": user, "data": {"channel": "email", "to": "a@example.com"}},
        "setup_failed": {"data": {"error_code": "waba_limit_reached"}},
        "email_sent": {"data": {"message": "failed", "to": "b@example.com"}},
        "disconnected": {"data": {"reason": "moved"}, "connection": number},
        "health_checked": {"data": {"status": "degraded", "error": "<b>"}},
        "webhook_received": {"data": ["not", "a", "dict"]},
        "account_updated": {"data": {"event": {"no": "text"}, "reason": ["x"]}},
    }.items():
        customer.events.create(kind=kind, source="manual", **fields)
    page = text_of(read(admin_client, change_url(bakery)))
    for text in [
        "Personal link sent · by e-mail · a@example.com Waiting grace",
        "E-mail sent · about the attempt that failed · b@example.com",
        f"Setup failed · {SETUP_ERRORS['waba_limit_reached'].title}",
        f"Disconnected · connected by another customer · {FORMATTED}",
        "Health checked · Degraded · &lt;b&gt;",
    ]:
        assert text in page


def test_list_of_the_timeline_tells_a_reminder_from_an_invitation(admin_client: Client) -> None:
    _bakery, customer = invited_bakery()
    data = {"channel": "email", "to": "a@example.com"}
    for more in ({}, {"message": "reminder"}):
        customer.events.create(kind="setup_link_sent", source="sync", data={**data, **more})
    page = text_of(read(admin_client, reverse("admin:kapso_connect_timelineevent_changelist")))
    assert page.count("Personal link sent · by e-mail · a@example.com") == 1
    assert page.count("Personal link sent · by e-mail · as a reminder · a@example.com") == 1


def test_the_panel_leaves_the_sites_own_page_as_it_is(admin_client: Client) -> None:
    bakery, _customer = new_bakery()
    page = read(admin_client, change_url(bakery))
    assert page.count("kapso-panel-heading") == 2
    assert "The bakery&#x27;s own page" in page or "The bakery's own page" in page
    # Forms cannot be in one another.
    assert page.index("</section>") < page.index('id="bakery_form"')
    assert "kapso-panel" not in read(admin_client, change_url(bakery) + "?_popup=1")
    assert "kapso-panel" not in read(admin_client, url(Bakery, "add"))
    data = {"title": "New name", "contact": "", "reference": "", "locale": ""}
    assert admin_client.post(change_url(bakery), data).status_code == 302
    assert "kapso-panel" in admin_client.post(change_url(bakery), {}).content.decode()


@pytest.mark.parametrize("title", ["ﺎﻠﺴﻋﺍﺩﺓ مخبز", "🥐🥖", "x" * 500, "<script>", "\u202eevil"])
def test_any_name_and_no_email_is_accepted(admin_client: Client, title: str) -> None:
    bakery = Bakery.objects.create(title=title)
    response = admin_client.post(url(Bakery, "whatsapp_invite", bakery.pk))
    assert response.status_code == 302
    customer = Customer.objects.get()
    name = title[:255].replace("\u202e", "")
    assert (customer.name, customer.email, customer.owner) == (name, "", bakery)
    for obj in (bakery, customer):
        assert "<script>" not in read(admin_client, change_url(obj)).replace("<script>\n", "")


def test_another_admin_site_links_to_its_own_pages_only(admin_client: Client) -> None:
    bakery, customer = invited_bakery()
    create_rows(customer, [NUMBER], {})
    list_page = read(admin_client, url(Bakery, site="other"))
    assert FORMATTED in list_page
    assert ACTION in list_page
    panel = admin_client.get(change_url(bakery, site="other")).context["kapso"]
    assert panel["lists"] == []
    offered = buttons(admin_client, bakery, site="other")
    assert len(offered) >= 5
    assert all(address.startswith("/other-admin/") for address, _classes in offered)


def test_a_longer_history_costs_no_more_queries(admin_client: Client) -> None:
    bakery, customer = invited_bakery()
    user = User.objects.create_user("grace")

    def add(count: int) -> None:
        for _ in range(count):
            number = make_connection(customer, **NUMBER)
            customer.events.create(kind="connected", source="x", connection=number, actor=user)

    create_rows(customer, [], {})
    add(1)
    admin_client.get(change_url(bakery))
    few = queries(admin_client, change_url(bakery))
    add(9)
    assert queries(admin_client, change_url(bakery)) == few


def test_parent_and_child_show_the_same_customer(admin_client: Client) -> None:
    franchise = Franchise.objects.create(title="Ada's")
    bakery = Bakery.objects.get(pk=franchise.pk)
    for obj in (franchise, bakery):
        response = admin_client.post(url(type(obj), "whatsapp_invite", obj.pk))
        assert response.status_code == 302
    customer = Customer.objects.get()
    create_rows(customer, [NUMBER], {})
    for obj in (franchise, bakery):
        assert cells(admin_client, url(type(obj))) == [f"Connected {FORMATTED}"]
        assert FORMATTED in read(admin_client, change_url(obj))
        assert cells(admin_client, url(type(obj)) + "?whatsapp_status=connected") != []
        assert cells(admin_client, url(type(obj)) + "?whatsapp_status=invited") == []
    assert change_url(bakery) in read(admin_client, change_url(customer))


def test_customer_of_a_child_links_to_it_if_the_parent_has_no_admin(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = Customer.objects.for_owner(franchise := Franchise.objects.create(title="Ada's"))
    monkeypatch.delitem(admin.site._registry, Bakery)
    assert change_url(franchise) in read(admin_client, change_url(customer))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"name": "Ada", "e_mail": "ada@example.com"}, "unknown keys: &#x27;e_mail&#x27;."),
        ({"phone": "1", "id": 7}, "unknown keys: &#x27;phone&#x27;, &#x27;id&#x27;."),
        (None, "must return a dict"),
        ("Ada", "must return a dict"),
    ],
)
def test_customer_data_that_is_wrong_is_named(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, data: Any, problem: str
) -> None:
    monkeypatch.setattr(ShopAdmin, "get_customer_data", lambda self, obj: data)
    shop = Shop.objects.create(name="Shop")
    for action in (
        lambda: admin_client.post(url(Shop, "whatsapp_invite", shop.pk), follow=True),
        lambda: admin_client.post(
            url(Shop), {"action": ACTION, "_selected_action": shop.pk}, follow=True
        ),
    ):
        response = action()
        assert response.status_code == 200
        assert problem in response.content.decode()
        assert "name, external_customer_id, email, language" in response.content.decode()
    assert not Customer.objects.exists()
    Customer.objects.for_owner(shop)
    for view in ("change", "whatsapp_email"):
        assert admin_client.get(url(Shop, view, quote(shop.pk)), follow=True).status_code == 200


class OwnUrls(admin.ModelAdmin):
    def get_urls(self) -> list[Any]:
        return admin.ModelAdmin.get_urls(self)


class MixinBehind(OwnUrls, SetupLinkAdminMixin):
    pass


class WithoutSuper(SetupLinkAdminMixin, admin.ModelAdmin):
    def get_urls(self) -> list[Any]:
        return admin.ModelAdmin.get_urls(self)


class Harmless(admin.ModelAdmin):
    list_per_page = 7


class MixinBehindHarmless(Harmless, SetupLinkAdminMixin):
    pass


class MixinInFront(SetupLinkAdminMixin, OwnUrls):
    pass


@pytest.mark.parametrize(
    ("model_admin", "expected"),
    [
        (MixinBehind, ["kapso_connect.W031", "kapso_connect.E014"]),
        (WithoutSuper, ["kapso_connect.E014"]),
        (MixinBehindHarmless, []),
        (MixinInFront, []),
    ],
)
def test_mixin_that_another_base_replaces_is_reported(
    monkeypatch: pytest.MonkeyPatch, model_admin: Any, expected: list[str]
) -> None:
    monkeypatch.setitem(admin.site._registry, Shop, model_admin(Shop, admin.site))
    found = [m for m in run_checks() if m.id in {"kapso_connect.W031", "kapso_connect.E014"}]
    assert [m.id for m in found] == expected
    for message in found:
        assert "Put SetupLinkAdminMixin first" in str(message.hint)
    if "kapso_connect.W031" in expected:
        assert (
            "OwnUrls comes before SetupLinkAdminMixin in the bases of MixinBehind" in found[0].msg
        )


@pytest.mark.parametrize("model", [Bakery, Customer])
def test_pages_that_ask_kapso_are_exempt_from_atomic_requests(model: Any) -> None:
    pages = [
        pattern
        for pattern in admin.site.get_model_admin(model).get_urls()
        if "whatsapp" in (pattern.name or "")
    ]
    assert len(pages) >= 11
    for page in pages:
        assert page.callback._non_atomic_requests == {"default"}, page.name


def test_mixin_behind_modeladmin_itself_is_refused_by_python() -> None:
    with pytest.raises(TypeError, match="bases ModelAdmin, SetupLinkAdminMixin"):
        type("Behind", (admin.ModelAdmin, SetupLinkAdminMixin), {})


def test_no_action_if_the_site_has_none(admin_client: Client) -> None:
    Branch.objects.create(code="a")
    new_bakery()
    assert ACTION not in read(admin_client, url(Branch))
    assert ACTION in read(admin_client, url(Bakery))
