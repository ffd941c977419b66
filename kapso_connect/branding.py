"""What the customers' pages and e-mails show of the site: its name, logo, colours, contact."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.urls import NoReverseMatch
from django.utils import translation
from django.utils.html import format_html
from django.views.generic.base import ContextMixin

from . import languages, theme
from .conf import Conf, get_conf
from .models import SetupLink
from .text import one_line
from .utils import reverse_path, static_url

SHARE_IMAGE = "kapso_connect/share.png"
"""The picture in a preview of a connect URL, if the site has none of its own."""

PHOTO_TYPES = (".png", ".jpg", ".jpeg")
"""The pictures that every chat app can show."""


class BrandingMixin(ContextMixin):
    """For a site's own class-based view whose template extends ``kapso_connect/base.html``."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return {**site_branding(), **super().get_context_data(**kwargs)}


def site_branding(link: SetupLink | None = None) -> dict[str, Any]:
    """Return the context that a page of the site's own needs to extend ``kapso_connect/base.html``.

    Its language is Django's active one, as the texts of the page are the site's own. Its colours
    are those of ``link``, or else those of ``SETUP_LINK_DEFAULTS``.
    """
    return {
        **base_context(link),
        "language": translation.get_language() or settings.LANGUAGE_CODE,
        "direction": "rtl" if translation.get_language_bidi() else "ltr",
    }


def base_context(link: SetupLink | None = None) -> dict[str, Any]:
    """Return the context of ``base.html`` for a page or an e-mail of this package.

    Its language is the active one, or English if this package's texts are not in that language. Its
    colours are those of ``link``, or else those of ``SETUP_LINK_DEFAULTS``.
    """
    conf = get_conf()
    language = languages.current_language()
    colors = theme_of(link)
    logo, dark_logo = file_url(conf.logo_url), file_url(conf.logo_dark_url)
    return {
        "site_name": conf.display_name,
        "site": format_html("<bdi>{}</bdi>", conf.display_name),
        "language": languages.html_language(language),
        "direction": languages.direction(language),
        "logo_url": (theme.is_dark(colors) and dark_logo) or logo,
        "logo_dark_url": dark_logo,
        "logo_has_name": conf.logo_has_name,
        "icon_url": logo,
        "share_image_url": _share_image_url(conf),
        "contact_url": conf.contact_url,
        "privacy_url": conf.privacy_url,
        "terms_url": conf.terms_url,
        "styles_url": static_url("kapso_connect/pages.css"),
        "script_url": static_url("kapso_connect/pages.js"),
        "theme_url": _theme_url(theme.to_path(colors)),
    }


def theme_of(link: SetupLink | None) -> Any:
    """Return the ``theme_config`` of ``link``, or else that of ``SETUP_LINK_DEFAULTS``."""
    of_link = link.options.get("theme_config") if link else None
    return of_link or get_conf().setup_link_defaults.get("theme_config") or {}


def inviter_name(link: SetupLink) -> str:
    """Return the full name of who created ``link``, if the site shows it to customers; else ""."""
    user = link.created_by if get_conf().show_inviter else None
    full_name = getattr(user, "get_full_name", None)
    return one_line(str(full_name() or "")) if callable(full_name) else ""


def file_url(path: str) -> str:
    """Return the URL of a picture in the settings, or "" if it is a static file that this site does
    not have."""
    return static_url(path) if is_static_file(path) else path


def is_static_file(path: str) -> bool:
    """Return whether a picture in the settings is a static file, not a URL."""
    return bool(path) and not path.startswith("/") and "://" not in path


def is_svg(url: str) -> bool:
    """Return whether a picture is an SVG file. Most chat apps and mail programs do not show it."""
    return url.partition("?")[0].lower().endswith((".svg", ".svgz"))


def absolute_url(url: str) -> str:
    """Return a URL of this site with its origin, for e-mails and for other sites."""
    public_url = get_conf().public_url
    if url.startswith("//"):  # that of a static file may be
        return f"{public_url.partition('://')[0]}:{url}"
    return public_url + url if url.startswith("/") else url


def _share_image_url(conf: Conf) -> str:
    """Return the absolute URL of the picture in a preview of a connect URL, or "" if there is
    none."""
    is_photo = conf.logo_url.partition("?")[0].lower().endswith(PHOTO_TYPES)
    logo = conf.logo_url if is_photo else ""
    url = file_url(conf.share_image_url) or file_url(logo) or file_url(SHARE_IMAGE)
    return absolute_url(url) if conf.public_url else ""


def _theme_url(colors: str) -> str:
    """Return the URL of the stylesheet with these ``colors``; "" if there are none, or if the site
    leaves its pattern out. Browsers keep the stylesheet of a URL for long, hence the version."""
    if not colors.strip("-"):
        return ""
    try:
        return f"{reverse_path('kapso_connect:theme', args=[colors])}?{theme.VERSION}"
    except NoReverseMatch:
        return ""
