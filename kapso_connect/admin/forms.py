"""The forms for creating and extending setup links."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from itertools import product
from typing import Any

from django import forms
from django.contrib.admin.widgets import AdminRadioSelect
from django.http import QueryDict
from django.utils.formats import date_format

from .. import theme
from ..exceptions import InvalidOptions
from ..kapso.languages import Language
from ..kapso.setup_link_options import DEFAULT_COUNTRY, SetupLinkOptions, provisioning_problem
from ..models import Customer
from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from ..utils import (
    MAX_URL_LENGTH,
    from_local_time,
    to_local_time,
    today,
    validate_same_site_url,
)
from .colors import COLORS
from .display import without_email_text
from .draft_customers import Counts, DraftCustomers


class ColorInput(forms.TextInput):
    input_type = "color"


SEND = "on"
"""The value of ``send_email`` if the links are e-mailed."""

CONNECTION_TYPES = {
    "coexistence,dedicated": gettext_lazy("the customer chooses how to connect"),
    "coexistence": gettext_lazy("only with the app"),
    "dedicated": gettext_lazy("only without the app"),
}
BILLING_TEXTS = {
    "": gettext_lazy("who pays Meta is set at Kapso"),
    "customer_managed": gettext_lazy("the customer pays Meta"),
    "partner_managed": gettext_lazy("we pay Meta"),
}
"""The options in the few words of the summary."""


class SetupLinkForm(forms.Form):
    """The delivery and the options of new setup links for ``customers``. The options that staff may
    not choose are the site's ``SETUP_LINK_DEFAULTS``, passed as ``defaults``.

    ``may_send`` is whether the user may e-mail the links, and ``can_send`` whether the site can.
    ``customer`` is the only customer, if there is one.
    """

    BOTH = "coexistence,dedicated"

    OPTIONS = (
        "connection_types",
        "language",
        "next_url",
        "meta_billing_mode",
        "provision_phone_number",
        "phone_number_country_isos",
        "phone_number_area_code",
    )
    """The fields that are folded into “Options”, where the colours are as well."""

    leave_out_connected = forms.BooleanField(required=False)
    leave_out_invited = forms.BooleanField(required=False)
    invite_anyway = forms.FloatField(
        required=False,
        min_value=0,
        max_value=4e9,
        help_text="When the user was told of the invitations that do not matter, in seconds.",
    )
    send_email = forms.ChoiceField(required=False, widget=forms.RadioSelect)
    connection_types = forms.ChoiceField(
        label=gettext_lazy("How the customer connects"),
        widget=AdminRadioSelect(attrs={"class": "radiolist"}),
        choices=[
            (
                BOTH,
                gettext_lazy(
                    "The customer chooses: both ways are explained to the customer. Choose another "
                    "one only if you know which one is right."
                ),
            ),
            (
                "coexistence",
                gettext_lazy(
                    "Only with the app (coexistence): the customer goes on writing with the "
                    "WhatsApp Business app on the phone, and this site uses the same number. Up to "
                    "5 messages a second."
                ),
            ),
            (
                "dedicated",
                gettext_lazy(
                    "Only without the app (dedicated): the number can no longer be used in an app "
                    "on the phone, and works through this site alone. For a number that is in no "
                    "app, or for very many messages: up to 1000 a second."
                ),
            ),
        ],
    )
    language = forms.ChoiceField(
        label=gettext_lazy("Language"),
        required=False,
        help_text=gettext_lazy(
            "The page on which the customer connects the number is in this language, and the "
            "e-mail with the link, too."
        ),
    )
    next_url = forms.CharField(
        label=gettext_lazy("Page after connecting"),
        required=False,
        max_length=MAX_URL_LENGTH,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text=gettext_lazy(
            "Once the number is connected, the button “Continue” takes the customer to this page "
            "of our site, such as /welcome/. Enter one only if these customers are to see another "
            "page than all others."
        ),
    )
    meta_billing_mode = forms.ChoiceField(
        label=gettext_lazy("Who pays Meta for messages"),
        required=False,
        widget=AdminRadioSelect(attrs={"class": "radiolist"}),
        choices=[
            ("", gettext_lazy("As set at Kapso. Choose this if you are not sure.")),
            (
                "customer_managed",
                gettext_lazy(
                    "The customer pays: Meta charges a card that the customer enters at Meta."
                ),
            ),
            (
                "partner_managed",
                gettext_lazy("We pay for the customer, with this site's credits at Kapso."),
            ),
        ],
        help_text=gettext_lazy(
            "This cannot be changed once the link has been created: it takes a new link. Whether "
            "Kapso pays Meta is shown with the number once it is connected."
        ),
    )
    provision_phone_number = forms.BooleanField(
        label=gettext_lazy("Give the customer a new phone number"),
        required=False,
        help_text=gettext_lazy(
            "For a customer who has no number for WhatsApp: Kapso provides one while the customer "
            "connects. Otherwise the customer connects a number that they have."
        ),
    )
    phone_number_country_isos = forms.CharField(
        label=gettext_lazy("Countries of the new number"),
        required=False,
        max_length=1000,
        widget=forms.TextInput(attrs={"data-kapso-needs": "id_provision_phone_number"}),
        help_text=gettext_lazy(
            "Kapso provides a number from one of these countries. Write two letters for each, such "
            "as US, MX. Without any, the number is from the United States."
        ),
    )
    phone_number_area_code = forms.CharField(
        label=gettext_lazy("Area code of the new number"),
        required=False,
        max_length=10,
        widget=forms.TextInput(
            attrs={"data-kapso-needs": "id_provision_phone_number", "inputmode": "numeric"}
        ),
        help_text=gettext_lazy(
            "Only for a number from the United States: three digits, such as 415 for San "
            "Francisco. Without one, Kapso chooses."
        ),
    )
    accept_contrast = forms.BooleanField(
        label=gettext_lazy("Use these colours anyway"), required=False
    )

    def __init__(
        self,
        data: QueryDict | None,
        defaults: Mapping[str, Any],
        customers: DraftCustomers,
        *,
        customer: Customer | None = None,
        may_send: bool = False,
        can_send: bool = True,
    ) -> None:
        self.defaults = defaults
        self.customers = customers
        self.customer = customer
        self.can_email = bool(may_send and can_send and customers.with_email)
        colors = defaults.get("theme_config")
        self.default_theme: Mapping[str, str] = colors if isinstance(colors, Mapping) else {}
        initial = {
            **self.initial_from(defaults),
            **self.initial_delivery(),
        }
        if data is not None:
            data = data.copy()
            # Browsers do not send disabled fields, which the form may be shown again with.
            for name in ("phone_number_country_isos", "phone_number_area_code"):
                data.setdefault(name, initial[name])
        super().__init__(data, initial=initial, label_suffix="")
        default = defaults.get("language")
        automatic = (
            _("The customer's own, otherwise %(language)s")
            % {"language": dict(Language.choices).get(default, default)}
            if default
            else _("The customer's own, otherwise that of the customer's browser")
        )
        language: Any = self.fields["language"]
        language.choices = [("", automatic), *Language.choices]
        if not may_send:
            del self.fields["send_email"]
        else:
            send_email: Any = self.fields["send_email"]
            send_email.choices = [(SEND, ""), ("", _("Copy it yourself"))]
        if customers.total < 2:
            # The user chose this customer, and no other one.
            del self.fields["leave_out_connected"], self.fields["leave_out_invited"]
        for name, color in COLORS.items():
            shown = self.shown_colors[name]
            self.fields[f"own_{name}"] = forms.BooleanField(label=str(color.label), required=False)
            self.fields[name] = forms.RegexField(
                r"#[0-9A-Fa-f]{6}\Z",
                label=str(color.label),
                required=False,
                initial=shown,
                widget=ColorInput(
                    attrs={
                        "aria-label": _("Colour: %(name)s") % {"name": color.label},
                        "data-kapso-color": f"id_own_{name}",
                        "data-shown": shown,
                    }
                ),
                error_messages={"invalid": _("Must be a colour such as #1a2b3c.")},
            )

    @classmethod
    def initial_from(cls, defaults: Mapping[str, Any]) -> dict[str, Any]:
        types: Sequence[str] = defaults.get("allowed_connection_types") or ()
        countries = defaults.get("phone_number_country_isos") or (DEFAULT_COUNTRY,)
        return {
            "connection_types": types[0] if len(set(types)) == 1 else cls.BOTH,
            "meta_billing_mode": defaults.get("meta_billing_mode") or "",
            "provision_phone_number": bool(defaults.get("provision_phone_number")),
            "phone_number_country_isos": ", ".join(str(code) for code in countries),
            "phone_number_area_code": defaults.get("phone_number_area_code") or "",
        }

    def initial_delivery(self) -> dict[str, Any]:
        """Return who is left out at first, and how the link is delivered. Nobody is left out if no
        other customer would be left."""
        connected = self.customers.count(without_connected=True).total > 0
        invited = self.customers.count(without_connected=connected, without_invited=True).total > 0
        left = self.customers.count(without_connected=connected, without_invited=invited)
        return {
            "leave_out_connected": connected,
            "leave_out_invited": invited,
            "send_email": SEND if self.can_email and left.with_email else "",
        }

    def fieldsets(self) -> list[tuple[str | None, dict[str, Any]]]:
        """Return the options but the colours, as the admin groups them."""
        return [
            (None, {"fields": self.OPTIONS[:4]}),
            (_("A new number"), {"fields": self.OPTIONS[4:]}),
        ]

    def default_options(self) -> str:
        """Return this site's defaults of the options in a few words."""
        initial: Mapping[str, Any] = self.initial
        texts: list[Any] = [
            CONNECTION_TYPES.get(initial["connection_types"], initial["connection_types"]),
            self._default_language(),
            BILLING_TEXTS.get(initial["meta_billing_mode"], initial["meta_billing_mode"]),
        ]
        if initial["provision_phone_number"]:
            texts.append(_("new phone number"))
        if self.default_theme:
            texts.append(_("colours of this site"))
        return " · ".join(map(str, texts))

    def _default_language(self) -> str:
        names: dict[Any, Any] = dict(Language.choices)
        default = self.defaults.get("language")
        if self.customer and (self.customer.language or default) in names:
            return str(names[self.customer.language or default])
        if default:
            return _("the customer's language, otherwise %(language)s") % {
                "language": names.get(default, default)
            }
        return _("the customer's language")

    @property
    def options_are_open(self) -> bool:
        """True if an option was sent that has an error, or is not as at first."""
        return self.is_bound and (
            self.has_colors
            or any(name in self.changed_data or self[name].errors for name in self.OPTIONS)
        )

    def clean_next_url(self) -> str:
        try:
            return validate_same_site_url(self.cleaned_data["next_url"])
        except InvalidOptions as error:
            raise forms.ValidationError(error.errors["next_url"]) from None

    def clean_phone_number_country_isos(self) -> list[str]:
        import phonenumbers  # slow to import

        countries = list(
            dict.fromkeys(
                re.findall(r"[^\s,;]+", self.cleaned_data["phone_number_country_isos"].upper())
            )
        )
        wrong = [code for code in countries if code not in phonenumbers.SUPPORTED_REGIONS]
        if wrong and self.data.get("provision_phone_number"):
            raise forms.ValidationError(
                _("Not a country's code of two letters, such as US: %(codes)s.")
                % {"codes": ", ".join(wrong[:5])}
            )
        return countries

    def clean_send_email(self) -> bool:
        send = bool(self.cleaned_data["send_email"] == SEND)
        if send and not self.chosen().with_email:
            raise forms.ValidationError(_("None of the customers has an e-mail address."))
        if send and not self.can_email:
            raise forms.ValidationError(self.no_email_reason())
        return send

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        area_code = data.get("phone_number_area_code", "")
        has_number = data.get("provision_phone_number")
        types = data.get("connection_types", "").split(",")
        if problem := provisioning_problem(
            {"provision_phone_number": has_number, "allowed_connection_types": types}
        ):
            self.add_error("provision_phone_number", problem)
        if not has_number and area_code and area_code != self.initial["phone_number_area_code"]:
            self.add_error(
                "phone_number_area_code",
                _("Tick “Give the customer a new phone number” to use an area code."),
            )
        if not self.chosen().total:
            self.add_error(None, nobody_left())
        if not self.errors:
            try:
                SetupLinkOptions.build(self.defaults, self.options())
            except InvalidOptions as error:
                self._add_option_errors(error)
        if not self.errors and self.unreadable() and not data["accept_contrast"]:
            self.add_error("accept_contrast", _("Some text would be hard to read on Kapso's page:"))
        return data

    def options(self) -> dict[str, Any]:
        """Return the chosen options, under Kapso's names."""
        data = self.cleaned_data
        options: dict[str, Any] = {
            "allowed_connection_types": data["connection_types"].split(","),
            "meta_billing_mode": data["meta_billing_mode"] or None,
            "provision_phone_number": data["provision_phone_number"],
        }
        if data["language"]:
            options["language"] = data["language"]
        if data["provision_phone_number"]:
            options["phone_number_country_isos"] = data["phone_number_country_isos"] or None
            options["phone_number_area_code"] = data["phone_number_area_code"] or None
        if own := self.own_colors():
            options["theme_config"] = {**self.default_theme, **own}
        return options

    def _add_option_errors(self, error: InvalidOptions) -> None:
        fields = {
            "allowed_connection_types": "connection_types",
            "allowed_origins": "connection_types",  # they need a single type
        }
        for name, problem in error.errors.items():
            field = fields.get(name, name)
            if field in self.fields:
                self.add_error(field, problem)
            else:
                self.add_error(None, f"{name}: {problem}")

    # Whom the links are for

    def is_ticked(self, name: str) -> bool:
        return name in self.fields and bool(self[name].value())

    @property
    def leaves_out(self) -> dict[str, bool]:
        """Whether those who are connected, or have a usable link, are left out."""
        return {
            "leave_out_connected": self.is_ticked("leave_out_connected"),
            "leave_out_invited": self.is_ticked("leave_out_invited"),
        }

    def chosen(self) -> Counts:
        """Return how many customers are not left out."""
        return self.customers.count(
            without_connected=self.is_ticked("leave_out_connected"),
            without_invited=self.is_ticked("leave_out_invited"),
        )

    def no_email_reason(self) -> str:
        """Return why the links cannot be e-mailed, or "" if they can."""
        if self.can_email:
            return ""
        if "send_email" not in self.fields:
            return _("You do not have permission to e-mail links to customers.")
        if self.customers.with_email:
            return _("This site is not set up to send e-mails.")
        return ngettext(
            "The customer has no e-mail address.",
            "The customers have no e-mail address.",
            self.customers.total,
        )

    def texts(self) -> dict[str, LiveText]:
        """Return the texts that depend on who is left out and on the delivery."""
        state = "".join(
            str(int(self.is_ticked(name)))
            for name in ("leave_out_connected", "leave_out_invited", "send_email")
        )
        return {
            name: LiveText(self, make, state)
            for name, make in {
                "button": self._button_text,
                "email": self._email_text,
                "without_email": self._without_email_text,
            }.items()
        }

    def _button_text(self, counts: Counts, send_email: bool) -> str:
        if not counts.total:
            return _("Create no link")
        if not (send_email and counts.with_email):
            return ngettext("Create the link", "Create %(count)s links", counts.total) % {
                "count": counts.total
            }
        if counts.total == counts.with_email:
            return ngettext(
                "Create the link and e-mail it",
                "Create %(count)s links and e-mail them",
                counts.total,
            ) % {"count": counts.total}
        return _("Create %(count)s links and e-mail %(emails)s of them") % {
            "count": counts.total,
            "emails": counts.with_email,
        }

    def _email_text(self, counts: Counts, send_email: bool) -> str:
        if self.customer:
            return _("E-mail to %(address)s") % {"address": self.customer.email}
        if not counts.with_email:
            return _("E-mail: none of these customers has an address")
        return ngettext(
            "E-mail to the %(count)s customer who has an address",
            "E-mail to the %(count)s customers who have an address",
            counts.with_email,
        ) % {"count": counts.with_email}

    def _without_email_text(self, counts: Counts, send_email: bool) -> str:
        count = counts.total - counts.with_email
        if not (send_email and count):
            return ""
        return without_email_text(count)

    # Colours

    @property
    def shown_colors(self) -> dict[str, str]:
        """The colours of the preview while none is chosen."""
        guessed = {name: color.shown for name, color in COLORS.items()}
        return {**guessed, **self.default_theme}

    def own_colors(self) -> dict[str, str]:
        data = self.cleaned_data
        return {name: data[name] for name in COLORS if data.get(f"own_{name}") and data.get(name)}

    def unreadable(self) -> set[tuple[str, str]]:
        """Return the pairs of colours, of a text and of what is behind it, that the chosen colours
        make hard to read: in the preview, or as ``theme.problems`` says of the link."""
        own = self.own_colors()
        themes = ({**self.shown_colors, **own}, {**self.default_theme, **own})
        return {
            (problem.text, problem.behind)
            for colors in themes
            for problem in theme.problems(colors)
            # The site's own colours are not the user's to change.
            if problem.text in own or problem.behind in own
        }

    def color_warnings(self) -> Iterator[dict[str, Any]]:
        """Yield what the form says of each text that can be hard to read, shown or not."""
        unreadable = self.unreadable() if self.is_bound else set()
        for text, behind in theme.TEXT_PAIRS:
            yield {
                "text": text,
                "behind": behind,
                "message": _("“%(text)s” is hard to read on “%(behind)s”.")
                % {"text": COLORS[text].label, "behind": COLORS[behind].label},
                "is_shown": (text, behind) in unreadable,
            }

    @property
    def has_unreadable(self) -> bool:
        return self.is_bound and bool(self.unreadable())

    @property
    def has_colors(self) -> bool:
        """True if a colour is chosen or has an error, so that the section is shown open."""
        return any(self[f"own_{name}"].value() or self[name].errors for name in COLORS)

    def color_fields(self) -> Iterator[tuple[forms.BoundField, forms.BoundField]]:
        for name in COLORS:
            yield self[f"own_{name}"], self[name]


class LiveText:
    """A text for each state of the fields on which it depends, for the form's script. As a string
    it is the text of ``state``."""

    def __init__(
        self, form: SetupLinkForm, make: Callable[[Counts, bool], str], state: str
    ) -> None:
        self.texts = {
            f"{connected:d}{invited:d}{send_email:d}": make(
                form.customers.count(without_connected=connected, without_invited=invited),
                send_email,
            )
            for connected, invited, send_email in product((False, True), repeat=3)
        }
        self.state = state

    def __str__(self) -> str:
        return self.texts[self.state]

    def as_json(self) -> str:
        return json.dumps(self.texts)


def nobody_left() -> str:
    return _(
        "Nobody is left: all of the customers would be left out. Untick what leaves them out, or "
        "choose other customers."
    )


MAX_EXTENSION_DAYS = 365
"""Kapso has no limit, but a link that works for years may be found by a stranger."""


EARLIEST_DAY = date(2009, 1, 1)
"""WhatsApp began in 2009; databases cannot store dates much earlier."""


class DayField(forms.DateField):
    """A day as ``<input type="date">`` sends it, in every language."""

    widget = forms.DateInput(format="%Y-%m-%d", attrs={"type": "date"})
    input_formats = ["%Y-%m-%d"]


def period_problem(first: date, last: date) -> str:
    """Return why nothing can have happened from ``first`` to ``last``; "" if it can."""
    if first >= EARLIEST_DAY and last <= today():
        return ""
    return _("Choose days from %(first)s until today.") % {"first": date_format(EARLIEST_DAY)}


class ExtendForm(forms.Form):
    """The new last day of a link that ends at ``expires_at``: later than now, and within
    ``MAX_EXTENSION_DAYS``."""

    until = DayField(
        label=gettext_lazy("Last day"),
        error_messages={"invalid": gettext_lazy("Enter a date, such as 2031-12-24.")},
    )

    def __init__(self, data: QueryDict | None, *, expires_at: datetime) -> None:
        self.current_end = expires_at
        self.expires_at = to_local_time(expires_at)
        self.last_day = today() + timedelta(days=MAX_EXTENSION_DAYS)
        super().__init__(data, initial={"until": self.day_after(30)}, label_suffix="")
        limits = {"min": self.expires_at.date().isoformat(), "max": self.last_day.isoformat()}
        self.fields["until"].widget.attrs |= limits

    def day_after(self, days: int) -> date:
        """Return the day so many days after the current end, but at most the last day allowed."""
        return min(self.expires_at.date() + timedelta(days=days), self.last_day)

    def clean_until(self) -> Any:
        until = self.cleaned_data["until"]
        if until > self.last_day:
            raise forms.ValidationError(
                _("Choose a day up to %(date)s.") % {"date": date_format(self.last_day)}
            )
        if end_of_day(until) <= self.current_end:
            raise forms.ValidationError(
                _("The setup link works until %(date)s already. Choose a later day.")
                % {"date": date_format(self.expires_at)}
            )
        return until


def start_of_day(day: date) -> datetime:
    """Return the first moment of ``day`` in the current time zone, as this site stores times."""
    return from_local_time(datetime.combine(day, time.min))


def idle_before(days: int) -> datetime:
    """Return the end of the day ``days`` days ago."""
    return start_of_day(today() - timedelta(days=days - 1))


def end_of_day(day: date) -> datetime:
    """Return the last second of ``day`` in the current time zone, as this site stores times."""
    return from_local_time(datetime.combine(day, time(23, 59, 59)))
