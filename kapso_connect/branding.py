"""What the customers' pages and e-mails show of the site: its name, logo, colours, contact."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.urls import NoReverseMatch
from django.utils.html import format_html

from . import languages, theme
from .conf import get_conf
from .models import SetupLink
from .text import one_line
from .utils import reverse_path, static_url


def branding(link: SetupLink | None = None) -> dict[str, Any]:
    """Return the context of ``kapso_connect/base.html``, in the language that is active now.

    The colours are those of ``link``, or else those of ``SETUP_LINK_DEFAULTS``.
    """
    conf = get_conf()
    language = languages.current_language()
    colors = theme.to_path(theme_of(link))
    return {
        "site_name": conf.display_name,
        "site": format_html("<bdi>{}</bdi>", conf.display_name),
        "language": languages.html_language(language),
        "direction": languages.direction(language),
        "logo_url": file_url(conf.logo_url),
        "logo_dark_url": file_url(conf.logo_dark_url),
        "logo_has_name": conf.logo_has_name,
        "contact_url": conf.contact_url,
        "privacy_url": conf.privacy_url,
        "terms_url": conf.terms_url,
        "styles_url": static_url("kapso_connect/pages.css"),
        "script_url": static_url("kapso_connect/pages.js"),
        "theme_url": _theme_url(colors) if colors.strip("-") else "",
    }


def theme_of(link: SetupLink | None) -> Any:
    """Return the ``theme_config`` of ``link``, or else that of ``SETUP_LINK_DEFAULTS``."""
    of_link = link.options.get("theme_config") if link else None
    return of_link or get_conf().setup_link_defaults.get("theme_config") or {}


def inviter_name(link: SetupLink) -> str:
    """Return the full name of who created ``link``, if the site shows it to customers; else ""."""
    user = link.created_by if get_conf().show_inviter else None
    full_name = getattr(user, "get_full_name", None)
    return one_line(str(full_name())) if callable(full_name) else ""


def file_url(path: str) -> str:
    """Return the URL of a picture in the settings, or "" if it is a static file that this site does
    not have."""
    public_url = get_conf().public_url
    if not path or path.startswith("/") or (public_url and path.startswith(f"{public_url}/")):
        return path
    return static_url(path)


def absolute_url(url: str) -> str:
    """Return a URL of this site with its origin, for e-mails and for other sites."""
    return url if not url or urlsplit(url).netloc else get_conf().public_url + url


def _theme_url(colors: str) -> str:
    """Return the URL of the stylesheet, or "" if the site leaves its pattern out."""
    try:
        return reverse_path("kapso_connect:theme", args=[colors])
    except NoReverseMatch:
        return ""
