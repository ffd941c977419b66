"""Settings of the example, read from the environment or from a file ``.env`` beside manage.py.

The defaults are for development on one machine: DEBUG, SQLite, and the sandbox instead of Kapso,
with secrets that everyone knows. They end where a variable says that others can reach this site.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import quote, urlsplit

import django
import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
if (BASE_DIR / ".env").is_file():
    env.read_env(BASE_DIR / ".env")  # variables that are set already stay
# One without a value is the same as none.
env.ENVIRON = {name: value.strip() for name, value in os.environ.items() if value.strip()}

SANDBOX_SECRET = "sandbox"  # noqa: S105


def is_this_machine(host):
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_local_url(url):
    try:
        return is_this_machine(urlsplit(url).hostname or "")
    except ValueError:
        return False


def find_sign_of_a_server():
    """Return the name of a variable that says that this is no site of one developer's machine."""
    if not all(map(is_this_machine, ALLOWED_HOSTS)):
        return "ALLOWED_HOSTS"
    for name in ("KAPSO_PUBLIC_URL", "KAPSO_API_BASE_URL"):
        if not is_local_url(env.str(name, default="http://localhost")):
            return name
    if "KAPSO_API_BASE_URL" not in env:
        # Without the sandbox's URL, a key or secret of one's own is one of Kapso's.
        for name in ("KAPSO_API_KEY", "KAPSO_WEBHOOK_SECRET", "KAPSO_MESSAGE_WEBHOOK_SECRET"):
            if env.str(name, default=SANDBOX_SECRET) != SANDBOX_SECRET:
                return name
    return "BEHIND_PROXY" if env.bool("BEHIND_PROXY", default=False) else ""


ALLOWED_HOSTS = [host.strip() for host in env.list("ALLOWED_HOSTS", default=[])]
SIGN_OF_A_SERVER = find_sign_of_a_server()
SECRET_KEY = env.str("SECRET_KEY", default="")
# A secret key means a server, too, on which DEBUG must be turned on explicitly.
DEBUG = env.bool("DEBUG", default=not (SECRET_KEY or SIGN_OF_A_SERVER))
if not SECRET_KEY:
    if SIGN_OF_A_SERVER or not DEBUG:
        reason = (
            f"{SIGN_OF_A_SERVER} is set as for a server" if SIGN_OF_A_SERVER else "DEBUG is off"
        )
        raise ImproperlyConfigured(
            f"SECRET_KEY is not set, and {reason}. Set SECRET_KEY to a long random string, such as "
            'what this prints: python -c "import secrets; print(secrets.token_urlsafe(50))"'
        )
    SECRET_KEY = "insecure-for-development-only"  # noqa: S105
USES_SANDBOX = DEBUG and not SIGN_OF_A_SERVER

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "rest_framework",
    "kapso_connect",
    "example_project.crm",
    "example_project.demo",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
DATABASES = {
    "default": env.db("DATABASE_URL", default=f"sqlite:///{quote(str(BASE_DIR / 'db.sqlite3'))}")
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # The webhook and the browser write at the same time: one waits instead of failing, and whoever
    # only reads does not wait. DATABASE_URL may name other options: sqlite:///db.sqlite3?timeout=60
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL;",
        **DATABASES["default"].get("OPTIONS", {}),
    }
# Shared by all processes of a server, so that rate limits apply to all of them together.
CACHES = {
    "default": env.cache(
        "CACHE_URL",
        default="locmemcache://" if DEBUG else f"filecache://{quote(str(BASE_DIR / 'cache'))}",
    )
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
# In development, e-mails are printed.
email = env.email_url("EMAIL_URL", default="consolemail://" if DEBUG else "smtp://localhost:25")
if django.VERSION < (6, 1):
    globals().update(email, EMAIL_TIMEOUT=10)
else:
    MAILERS = {"default": {"BACKEND": email["EMAIL_BACKEND"]}}
    if email["EMAIL_HOST"]:
        MAILERS["default"]["OPTIONS"] = {
            "host": email["EMAIL_HOST"],
            "port": email["EMAIL_PORT"],
            "username": email["EMAIL_HOST_USER"] or "",
            "password": email["EMAIL_HOST_PASSWORD"] or "",
            "use_tls": email.get("EMAIL_USE_TLS", False),
            "use_ssl": email.get("EMAIL_USE_SSL", False),
            "timeout": 10,
        }
DEFAULT_FROM_EMAIL = "hello@example.com"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {
        name: {"handlers": ["console"], "level": "INFO"}
        for name in ("example_project", "kapso_connect")
    },
}

MESSAGE_WEBHOOK_SECRET = env.str(
    "KAPSO_MESSAGE_WEBHOOK_SECRET", default=SANDBOX_SECRET if USES_SANDBOX else ""
).split()
# In development, the defaults are those of ``python -m kapso_connect.sandbox``.
KAPSO_CONNECT = {
    "API_KEY": env.str("KAPSO_API_KEY", default=SANDBOX_SECRET if USES_SANDBOX else ""),
    "API_BASE_URL": env.str(
        "KAPSO_API_BASE_URL",
        default="http://127.0.0.1:8900" if USES_SANDBOX else "https://api.kapso.ai",
    ),
    "WEBHOOK_SECRET": env.str(
        "KAPSO_WEBHOOK_SECRET", default=SANDBOX_SECRET if USES_SANDBOX else ""
    ).split(),  # the new one and the old one, while it is changed
    "PUBLIC_URL": env.str(
        "KAPSO_PUBLIC_URL", default="http://127.0.0.1:8000" if USES_SANDBOX else ""
    ),
    # Without a secret of their own, messages are not delivered to this site.
    "NUMBER_WEBHOOK": {"url": "/whatsapp-messages/", "secret": MESSAGE_WEBHOOK_SECRET}
    if MESSAGE_WEBHOOK_SECRET
    else None,
    "SITE_NAME": "Example CRM",
    "LOGO_URL": "crm/logo.svg",
    "LOGO_DARK_URL": "crm/logo-dark.svg",
    "CONTACT_URL": f"mailto:{DEFAULT_FROM_EMAIL}",
    "INVITATION_TEXT": "Your customers can then book and ask by WhatsApp.",
}

# ``manage.py demo`` sets it for its two users; the start page shows it then.
DEMO_PASSWORD = os.environ.get("DEMO_PASSWORD", "") if USES_SANDBOX else ""

if not DEBUG:
    SECURE_SSL_REDIRECT = True
    SECURE_HSTS_SECONDS = env.int("SECURE_HSTS_SECONDS", default=3600)
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    if env.bool("BEHIND_PROXY", default=False):
        SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
