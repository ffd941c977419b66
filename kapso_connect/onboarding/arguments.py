"""Clear errors for what a site's own code passes by mistake."""

from __future__ import annotations

from django.db import models

from ..models import Connection, Customer, SetupLink


def check_customer(value: object, function: str, *, is_saved: bool = True) -> None:
    """Raise TypeError if ``value`` is no Customer, and ValueError if it is not saved. ``function``
    is the name of the one that was called. Without ``is_saved``, one that is not is allowed."""
    _check(value, Customer, function, is_saved=is_saved)


def check_connection(value: object, function: str) -> None:
    """Raise as ``check_customer`` does, if ``value`` is no saved Connection."""
    _check(value, Connection, function)


def check_setup_link(value: object, function: str) -> None:
    """Raise as ``check_customer`` does, if ``value`` is no saved SetupLink."""
    _check(value, SetupLink, function)


def _check(
    value: object, wanted: type[models.Model], function: str, *, is_saved: bool = True
) -> None:
    name = wanted.__name__
    if not isinstance(value, wanted):
        hint = ""
        if wanted is Customer and isinstance(value, models.Model):
            hint = f" Use Customer.objects.for_owner({value._meta.model_name})."
        # Not type(): ``request.user`` is a lazy object.
        raise TypeError(f"{function}() takes a {name}, not {value.__class__.__name__}.{hint}")
    if is_saved and value.pk is None:
        raise ValueError(f"{function}() takes a {name} that is saved. Save it first.")
