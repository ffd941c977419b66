"""The forms of the sandbox's pages: each calls a control, as the endpoints under /sandbox/ do."""

from __future__ import annotations

import copy
from dataclasses import asdict
from datetime import timedelta
from typing import Any, ClassVar

from django import forms

from . import accounts, control, payloads, subscriptions
from .faults import RULE_KINDS, Faults, Rule
from .fields import Invalid
from .state import Delivery, PhoneNumber, SetupLink, Webhook, find, find_number, now, store

CHOICES_SHOWN = 200
STATUSES_OFFERED = ("CONNECTED", "DISCONNECTED", "PENDING", "FLAGGED", "RESTRICTED", "BANNED")
RATINGS_OFFERED = ("GREEN", "YELLOW", "RED", "UNKNOWN")
NAME_STATUSES_OFFERED = ("APPROVED", "PENDING_REVIEW", "DECLINED", "EXPIRED")


def _choices(*values: str) -> list[tuple[str, str]]:
    return [(value, value) for value in values]


def _sent(event: str, deliveries: list[Delivery]) -> str:
    if not deliveries:
        return f"{event}: no active webhook wants it, or it waits for a batch. Nothing was sent."
    return f"{event}: {len(deliveries)} deliveries."


class BodyField(forms.JSONField):
    def prepare_value(self, value: Any) -> Any:
        return "" if value is None else super().prepare_value(value)


class ControlForm(forms.Form):
    """A form whose buttons call a control.

    ``endpoint`` is the one under /sandbox/ that does the same.
    ``buttons`` are values and labels. ``press`` gets the value of the button, calls the control,
    and returns a notice; it may raise ApiError. ``back`` is the page that is shown next.
    """

    endpoint = ""
    buttons: dict[str, str] = {}
    about = ""  # of what: read out with the label of each button
    page = "/"

    target = forms.CharField(required=False, widget=forms.HiddenInput)

    def __init__(self, data: Any = None, *, target: str = "", **kwargs: Any) -> None:
        self.key = KEYS[type(self)]
        kwargs["initial"] = {"target": target, **kwargs.get("initial", {})}
        super().__init__(data, auto_id=f"{self.key}-{target}-%s", label_suffix="", **kwargs)
        self.target_id: str = self.data.get("target", "") if self.is_bound else target

    @property
    def has_wide_fields(self) -> bool:
        return len(self.visible_fields()) > 2

    def filled(self) -> dict[str, Any]:
        """Return what was filled in."""
        values = self.cleaned_data.items()
        return {k: v for k, v in values if k != "target" and v not in (None, "")}

    def press(self, button: str) -> str:
        raise NotImplementedError

    def back(self) -> str:
        return self.page


def _customers() -> list[tuple[str, str]]:
    customers = list(store.customers.values())[: -CHOICES_SHOWN - 1 : -1]
    return [("", "None: the project's own"), *((one.id, one.name) for one in customers)]


def _numbers() -> list[tuple[str, str]]:
    numbers = list(store.numbers().values())[: -CHOICES_SHOWN - 1 : -1]
    return [("", "None"), *((one.phone_number_id, one.display_phone_number) for one in numbers)]


def _webhooks() -> list[tuple[str, str]]:
    webhooks = store.webhooks.values()
    return [("", "All webhooks that want it"), *((one.id, one.url) for one in webhooks)]


# The overview


class SeedForm(ControlForm):
    endpoint = "POST seed"
    buttons = {"seed": "Add customers"}

    customers = forms.IntegerField(min_value=1, max_value=10_000, initial=3)
    numbers_per_customer = forms.IntegerField(
        label="Phone numbers of each", min_value=0, max_value=100, initial=1
    )
    name_prefix = forms.CharField(
        initial="seed", max_length=100, help_text="Of names and external ids"
    )
    webhooks = forms.BooleanField(required=False, label="Send .created for each number")

    def press(self, button: str) -> str:
        values = self.filled()
        values["prefix"] = values.pop("name_prefix")
        counts = control.seed(values)
        return f"Customers added: {counts['customers']}, numbers: {counts['phone_numbers']}."


class AddNumberForm(ControlForm):
    endpoint = "POST numbers"
    buttons = {"add": "Add the number"}

    customer_id = forms.ChoiceField(choices=_customers, required=False, label="Customer")
    phone_number = forms.CharField(
        required=False,
        max_length=20,
        widget=forms.TextInput({"placeholder": "+14155550100", "inputmode": "tel"}),
        help_text="With country code; empty makes one up",
    )
    verified_name = forms.CharField(
        required=False,
        max_length=200,
        label="Name shown in WhatsApp",
        help_text="Or the customer's",
    )
    is_coexistence = forms.BooleanField(required=False, label="Coexistence with the app")
    webhook = forms.BooleanField(required=False, initial=True, label="Send .created")

    def press(self, button: str) -> str:
        number = control.add_number(self.filled())
        return f"{number.display_phone_number} was added."


class DefaultWebhookForm(ControlForm):
    endpoint = "POST webhook"
    buttons = {"set": "Send every event there", "remove": "Send none"}
    page = "/#webhooks"

    url = forms.CharField(
        required=False,
        label="URL",
        widget=forms.URLInput({"placeholder": "http://127.0.0.1:8000/whatsapp/webhook/"}),
    )
    secret = forms.CharField(
        required=False,
        widget=forms.TextInput({"autocomplete": "off"}),
        help_text="Signs the deliveries; empty leaves it as it is",
    )

    def press(self, button: str) -> str:
        values = {"url": None, **self.filled()}
        if button == "remove":
            values["url"] = None
        elif not values["url"]:
            raise Invalid("The URL is missing")
        known = store.webhooks.get(store.default_webhook_id)
        if known and "secret" not in values:
            values["secret"] = known.secret_key or ""
        webhook = control.change_default_webhook(values)
        return f"Every event goes to {webhook.url}." if webhook else "The webhook was removed."


class TestDeliveryForm(ControlForm):
    endpoint = "POST webhooks/<webhook_id>/test"
    buttons = {"test": "Send a test delivery"}
    page = "/#webhooks"

    def __init__(self, data: Any = None, **kwargs: Any) -> None:
        super().__init__(data, **kwargs)
        webhook = store.webhooks.get(self.target_id)
        events = webhook.events if webhook else []
        self.fields["event_type"] = forms.ChoiceField(label="Event", choices=_choices(*events))
        self.about = f"to {webhook.url}" if webhook else ""

    @classmethod
    def of(cls, webhook: Webhook) -> TestDeliveryForm | None:
        """Return the form for a webhook; None for one without events."""
        return cls(target=webhook.id) if webhook.events else None

    def press(self, button: str) -> str:
        event = self.cleaned_data["event_type"]
        deliveries = subscriptions.send_test_delivery(self.target_id, {"event_type": event})
        return _sent(f"Test of {event}", deliveries)


class LinkForm(ControlForm):
    endpoint = "PATCH setup_links/<setup_link_id>"
    page = "/#links"
    expire = {"expire": "Expire", "revoke": "Revoke"}
    buttons = {**expire, "activate": "Activate"}

    @classmethod
    def of(cls, link: SetupLink, name: str) -> LinkForm | None:
        """Return the form for a link of the customer ``name``; None for one that was used."""
        form, status = cls(target=link.id), link.current_status
        form.about = f"the link of {name}"
        form.buttons = cls.expire if status == "active" else {"activate": "Activate"}
        return None if status == "used" else form

    def press(self, button: str) -> str:
        changes: dict[str, dict[str, Any]] = {
            "expire": {"expires_at": now().isoformat()},
            "revoke": {"status": "revoked"},
            "activate": {
                "status": "active",
                "expires_at": (now() + timedelta(days=30)).isoformat(),
            },
        }
        link = control.change_setup_link(self.target_id, changes[button])
        return f"The setup link is {link.current_status}."


class EventForm(ControlForm):
    endpoint = "POST events"
    buttons = {"send": "Send the event"}
    page = "/#events"

    event = forms.ChoiceField(
        choices=_choices(*payloads.PROJECT_EVENTS, *payloads.NUMBER_EVENTS), required=False
    )
    other_event = forms.CharField(required=False, max_length=200, help_text="In place of the list")
    phone_number_id = forms.ChoiceField(
        choices=_numbers,
        required=False,
        label="Phone number",
        help_text="That it is about",
    )
    webhook_id = forms.ChoiceField(choices=_webhooks, required=False, label="To")
    payload = BodyField(
        required=False,
        widget=forms.Textarea({"rows": 3, "spellcheck": "false"}),
        label="Fields of the body, as JSON",
        help_text="In place of those made from the number",
    )
    idempotency_key = forms.CharField(required=False, max_length=200)
    reason = forms.CharField(required=False, max_length=200, help_text="Of .disconnected")
    initiated_by = forms.CharField(required=False, max_length=200, help_text="Of .disconnected")
    keep = forms.BooleanField(required=False, label="Leave the number as it is")
    legacy = forms.BooleanField(required=False, label="Kapso's older field names")

    def press(self, button: str) -> str:
        values = self.filled()
        values["event"] = values.pop("other_event", None) or values.get("event", "")
        if values.pop("keep"):
            values["apply"] = False
        return _sent(values["event"], control.send_event(values)[1])


class ResetForm(ControlForm):
    endpoint = "POST reset"
    buttons = {"reset": "Forget everything"}

    def press(self, button: str) -> str:
        control.restart()
        return "Everything is forgotten but the webhook of the command line."


# The page of a number


class NumberForm(ControlForm):
    """A form about a phone number, on its page."""

    def back(self) -> str:
        return f"/numbers/{self.target_id}"


class MetaForm(NumberForm):
    endpoint = "POST events"
    buttons = {
        "whatsapp.account.restricted": "Restrict the account",
        "whatsapp.account.disabled": "Disable the account",
        "whatsapp.account.reinstated": "Reinstate the account",
        "whatsapp.account.violation": "Report a violation",
        payloads.OFFBOARDED_EVENT: "Take the number off the API",
        payloads.RECONNECTED_EVENT: "Reconnect the number",
    }

    def press(self, button: str) -> str:
        about = {"event": button, "phone_number_id": self.target_id}
        return _sent(button, control.send_event(about)[1])


class DeviceForm(NumberForm):
    endpoint = "POST numbers/<phone_number_id>/device_change"
    buttons = {"change": "Change the phone"}

    seconds = forms.FloatField(
        min_value=0,
        max_value=86_400,
        initial=control.DEVICE_CHANGE_SECONDS,
        label="Seconds until Meta reconnects the number",
    )

    def press(self, button: str) -> str:
        seconds = control.change_device(self.target_id, self.filled())
        return f"{payloads.OFFBOARDED_EVENT} now, {payloads.RECONNECTED_EVENT} in {seconds:g} s."


class WithdrawForm(NumberForm):
    endpoint = "POST events"
    buttons = {
        "PARTNER_REMOVED": "Remove the partner",
        "PARTNER_APP_UNINSTALLED": "Uninstall the app",
    }

    def press(self, button: str) -> str:
        event = payloads.DISCONNECTED_EVENT
        about = {"event": event, "phone_number_id": self.target_id, "source_event": button}
        return _sent(event, control.send_event(about)[1])


class ChangeNumberForm(NumberForm):
    endpoint = "PATCH numbers/<phone_number_id>"
    buttons = {"change": "Save"}

    verified_name = forms.CharField(required=False, max_length=200, label="Name shown in WhatsApp")
    access_error = forms.CharField(
        required=False, max_length=200, help_text="Why Kapso cannot reach it at Meta"
    )
    is_coexistence = forms.BooleanField(required=False, label="Coexistence with the app")
    payment_problem = forms.BooleanField(required=False, label="Payment problem at Meta")

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "status": STATUSES_OFFERED,
        "quality_rating": RATINGS_OFFERED,
        "name_status": NAME_STATUSES_OFFERED,
    }

    def __init__(self, data: Any = None, **kwargs: Any) -> None:
        super().__init__(data, **kwargs)
        number = store.numbers().get(self.target_id)
        for name, values in self.CHOICES.items():
            # What the number has is a choice, too, whatever it is.
            current = getattr(number, name, None) or ""
            choices = _choices(*dict.fromkeys([current, *values]))
            self.fields[name] = forms.ChoiceField(choices=choices, required=name == "status")
        customers = dict(_customers())
        if owner := store.customers.get((number and number.customer_id) or ""):
            customers[owner.id] = owner.name
        self.fields["customer_id"] = forms.ChoiceField(
            choices=[*customers.items()], required=False, label="Customer"
        )
        self.order_fields([*self.CHOICES, "verified_name", "customer_id"])
        if number:
            shown = {k: value for k, value in vars(number).items() if k in self.fields}
            self.initial.update(shown)

    def press(self, button: str) -> str:
        values = {k: v for k, v in self.cleaned_data.items() if k != "target"}
        for name in ("quality_rating", "name_status", "verified_name", "customer_id"):
            values[name] = values[name] or None
        number = control.change_number(self.target_id, values)
        return f"{number.display_phone_number} was changed; no webhook is sent for it."


class MessageForm(NumberForm):
    endpoint = "POST numbers/<phone_number_id>/messages"
    buttons = {"send": "Send to the number"}

    sender = forms.CharField(
        label="From the phone number",
        initial="+14155550199",
        max_length=20,
        widget=forms.TextInput({"inputmode": "tel"}),
    )
    body = forms.CharField(label="Message", initial="Hello", max_length=1000)

    def press(self, button: str) -> str:
        values = {"from": self.cleaned_data["sender"], "body": self.cleaned_data["body"]}
        return _sent("The message", control.receive_message(self.target_id, values))


class NumberWebhookForm(NumberForm):
    """For messages, which go to webhooks of the number only; Kapso's API adds them, too."""

    buttons = {"add": "Add a webhook of this number"}

    url = forms.CharField(label="URL", widget=forms.URLInput)
    secret_key = forms.CharField(
        label="Secret", max_length=200, widget=forms.TextInput({"autocomplete": "off"})
    )

    def press(self, button: str) -> str:
        find_number(self.target_id)
        values = {**self.filled(), "events": list(payloads.NUMBER_EVENTS)}
        webhook = subscriptions.add_webhook(values, phone_number_id=self.target_id)
        return f"Messages of this number go to {webhook.url}."


class FundingForm(NumberForm):
    endpoint = "PATCH accounts/<business_account_id>"
    buttons = {"set": "Set"}

    funding = forms.ChoiceField(choices=_choices(*accounts.FUNDING_STATUSES), label="Funding")

    def __init__(self, data: Any = None, **kwargs: Any) -> None:
        super().__init__(data, **kwargs)
        number = store.numbers().get(self.target_id)
        self.account_id = number.business_account_id if number else None
        self.initial["funding"] = store.funding.get(self.account_id or "", "not_funded")

    def press(self, button: str) -> str:
        done = control.change_account(self.account_id or "", self.filled())
        return f"The account is {done['funding']}."


class DeleteNumberForm(NumberForm):
    endpoint = "DELETE numbers/<phone_number_id>"
    buttons = {"delete": "Delete the number"}
    page = "/#numbers"

    def press(self, button: str) -> str:
        control.delete_number(self.target_id)
        return f"The number is removed; {payloads.DELETED_EVENT} was sent."

    def back(self) -> str:
        return self.page


# The faults


class FaultForm(ControlForm):
    """The switch of one fault; ``target`` is its name."""

    endpoint = "POST faults"
    buttons = {"on": "Turn on", "off": "Turn off"}
    page = "/faults"
    values: ClassVar[dict[str, forms.Field]] = {
        "duplicate": forms.IntegerField(label="Copies", min_value=1, initial=1),
        "delay": forms.FloatField(label="Seconds", min_value=0, initial=5),
        "reorder": forms.IntegerField(label="Deliveries", min_value=2, initial=2),
        "batch": forms.IntegerField(label="Deliveries", min_value=1, initial=2),
        "envelope": forms.ChoiceField(
            label="Form", choices=[("event", "event and data"), ("type", "type and data")]
        ),
        "lag": forms.FloatField(label="Seconds", min_value=0, initial=5),
    }
    """Faults with a value; the others are on or off."""

    def __init__(self, data: Any = None, **kwargs: Any) -> None:
        super().__init__(data, **kwargs)
        self.about = f"the fault {self.target_id}"
        current = getattr(store.faults, self.target_id, False)
        if field := self.values.get(self.target_id):
            self.fields["value"] = copy.deepcopy(field)
            self.fields["value"].required = False
            if current:
                self.initial["value"] = "event" if current is True else current
        self.is_on = bool(current)
        if not self.is_bound:
            on = {"on": "Change" if self.is_on and field else "Turn on"}
            off = {"off": "Turn off"}
            self.buttons = {**on, **off} if self.is_on and field else off if self.is_on else on

    def press(self, button: str) -> str:
        fault = self.target_id
        if button == "off":
            control.change_faults({fault: asdict(Faults()).get(fault)})
            return f"The fault {fault} is off."
        value = self.cleaned_data.get("value", True)
        control.change_faults({fault: True if value == "event" else value})
        return f"The fault {fault} is on."


class RateLimitForm(ControlForm):
    endpoint = "POST rate_limit"
    buttons = {"set": "Set"}
    page = "/faults#rate_limit"

    limit = forms.IntegerField(min_value=0, max_value=1_000_000, label="Requests a minute and key")

    def __init__(self, data: Any = None, **kwargs: Any) -> None:
        super().__init__(data, initial={"limit": store.rate_limit}, **kwargs)

    def press(self, button: str) -> str:
        limit = control.change_rate_limit(self.filled())["limit"]
        return f"{limit} requests a minute are answered." if limit else "There is no rate limit."


class AddRuleForm(ControlForm):
    endpoint = "POST faults"
    buttons = {"add": "Add the rule"}
    page = "/faults#rules"

    kind = forms.ChoiceField(choices=_choices(*RULE_KINDS))
    match = forms.CharField(
        required=False,
        max_length=500,
        widget=forms.TextInput({"placeholder": "^POST .*/customers$", "spellcheck": "false"}),
        help_text="A regular expression in “METHOD /path”; empty means all",
    )
    status = forms.IntegerField(required=False, min_value=200, max_value=599, label="HTTP status")
    retry_after = forms.CharField(required=False, max_length=100, label="Retry-After")
    seconds = forms.FloatField(
        required=False, min_value=0, max_value=86_400, help_text="Of hang and slow"
    )
    location = forms.CharField(required=False, max_length=500, help_text="Of redirect")
    after = forms.IntegerField(required=False, min_value=0, label="First answer as usual")
    times = forms.IntegerField(required=False, min_value=1, help_text="Empty means all requests")

    def press(self, button: str) -> str:
        control.add_rule(self.filled())
        return f"The rule {self.cleaned_data['kind']} is on."


class RemoveRuleForm(ControlForm):
    """``target`` is the place of the rule in the list."""

    endpoint = "POST faults"
    buttons = {"off": "Turn off"}
    page = "/faults#rules"

    @classmethod
    def of(cls, rule: Rule, place: int) -> RemoveRuleForm:
        form = cls(target=str(place))
        form.about = f"the rule {rule.kind} {rule.match}".strip()
        return form

    def press(self, button: str) -> str:
        rules = {str(place): rule for place, rule in enumerate(store.faults.api)}
        rule = find(rules, self.target_id, "Rule")
        control.remove_rule(rule)
        return f"The rule {rule.kind} is off."


class ClearFaultsForm(ControlForm):
    endpoint = "DELETE faults"
    buttons = {"clear": "Turn all faults off"}
    page = "/faults"

    def press(self, button: str) -> str:
        control.clear_faults()
        return "All faults are off; what they held back is sent."


class ResendForm(ControlForm):
    """``target`` is the id of a delivery."""

    endpoint = "POST deliveries/<delivery_id>/resend"
    buttons = {"again": "Send again", "new_key": "Replay under a new key"}
    page = "/deliveries"

    def press(self, button: str) -> str:
        delivery = control.resend(self.target_id, new_key=button == "new_key")
        return f"{delivery.event} is sent again."


FORMS: dict[str, type[ControlForm]] = {
    "seed": SeedForm,
    "add_number": AddNumberForm,
    "default_webhook": DefaultWebhookForm,
    "test_delivery": TestDeliveryForm,
    "setup_link": LinkForm,
    "event": EventForm,
    "reset": ResetForm,
    "meta": MetaForm,
    "device": DeviceForm,
    "withdraw": WithdrawForm,
    "number": ChangeNumberForm,
    "message": MessageForm,
    "number_webhook": NumberWebhookForm,
    "funding": FundingForm,
    "delete_number": DeleteNumberForm,
    "fault": FaultForm,
    "rate_limit": RateLimitForm,
    "add_rule": AddRuleForm,
    "remove_rule": RemoveRuleForm,
    "clear_faults": ClearFaultsForm,
    "resend": ResendForm,
}
KEYS = {form: key for key, form in FORMS.items()}


def of_number(number: PhoneNumber) -> dict[str, ControlForm]:
    """Return the forms of a number's page, by name."""
    kinds = [kind for kind in KEYS if issubclass(kind, NumberForm)]
    return {KEYS[kind]: kind(target=number.phone_number_id) for kind in kinds}
