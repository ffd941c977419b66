"""Sending several e-mails over one connection, and what is known after an error.

An e-mail that the mail server refused for now is sent later. One that it may have accepted before
the connection broke is not sent again: a customer would get it twice.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
import traceback
from contextlib import suppress
from enum import Enum
from typing import Any

from django.core import mail
from django.core.mail import EmailMessage
from django.core.mail.backends.dummy import EmailBackend as DummyBackend


class SendFailure(Enum):
    """What is known of an e-mail after an error."""

    TEMPORARY = "not sent; the mail server may accept it later"
    UNKNOWN = "it may have been sent"
    PERMANENT = "not sent, and it would be refused again"


class Mailer:
    """A connection of the site's mail backend. It is opened for the first message, used for the
    others, and closed at the end of the ``with`` block.

    ``outage`` is the error by which the connection could not be opened, or broke. It concerns every
    other message, too.
    """

    def __init__(self) -> None:
        self.outage: Exception | None = None
        self._connection: Any = None

    def __enter__(self) -> Mailer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def send(self, message: EmailMessage) -> None:
        """Send ``message``. Raise as the mail backend does; see ``classify_error``.

        If the mail server has ended a connection after earlier messages, a new one is opened.
        """
        is_used = self._connection is not None
        try:
            self._send(message)
        except Exception as error:
            if not (is_used and self.outage and classify_error(error) is SendFailure.TEMPORARY):
                raise
        else:
            return
        self.outage = None
        self._send(message)

    def _send(self, message: EmailMessage) -> None:
        if self._connection is None:
            self._open()
        try:
            self._connection.send_messages([message])
        except Exception as error:
            if _ends_connection(error):
                self.outage = error
                self.close()
            raise

    def _open(self) -> None:
        connection = _default_backend()
        try:
            connection.open()
        except Exception as error:
            self.outage = error
            with suppress(Exception):
                connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # The messages were sent, or their errors raised; this is only the farewell.
            with suppress(Exception):
                connection.close()


def is_set_up() -> bool:
    """Return whether the site sends e-mails: it has a mail backend that does not discard them."""
    try:
        return not isinstance(_default_backend(), DummyBackend)
    except Exception:  # each backend raises its own
        return False


def _default_backend() -> Any:
    """Return the site's mail backend, not connected."""
    # Django 6.1 has mailers, and get_connection() is deprecated there.
    return mail.mailers.default if hasattr(mail, "mailers") else mail.get_connection()


class NotSentYet(Exception):
    """An e-mail was not sent, and may be later. The message has no address, so that it can be
    logged: mail servers name the recipients in theirs."""

    def __init__(self, error: Exception) -> None:
        codes = "".join(f" {code}" for code in _smtp_codes(error))
        super().__init__(f"{type(error).__name__}{codes}")


def classify_error(error: Exception) -> SendFailure:
    """Return what is known of an e-mail whose sending raised ``error``.

    In SMTP a response of 400 to 499 says that the message was not accepted, but may be later.
    A connection that broke tells nothing once the message itself was being transmitted.
    """
    if codes := _smtp_codes(error):
        if all(400 <= code < 500 for code in codes):
            return SendFailure.TEMPORARY
        # Another answer to the message than those of SMTP, which smtplib gives the code -1.
        is_unclear = isinstance(error, smtplib.SMTPDataError) and max(codes) < 400
        return SendFailure.UNKNOWN if is_unclear else SendFailure.PERMANENT
    if status := _http_status(error):
        if status in (429, 503):
            return SendFailure.TEMPORARY
        return SendFailure.UNKNOWN if status >= 500 else SendFailure.PERMANENT
    if isinstance(error, smtplib.SMTPServerDisconnected):
        in_data = "data" in _functions_of_smtplib(error)
        return SendFailure.UNKNOWN if in_data else SendFailure.TEMPORARY
    if isinstance(error, (smtplib.SMTPException, ssl.SSLCertVerificationError)):
        return SendFailure.PERMANENT
    if isinstance(error, (ConnectionRefusedError, socket.gaierror)):
        return SendFailure.TEMPORARY
    if isinstance(error, OSError):
        # Another protocol than SMTP, of which it is not known how far it had come.
        functions = _functions_of_smtplib(error)
        is_before = functions and "data" not in functions
        return SendFailure.TEMPORARY if is_before else SendFailure.UNKNOWN
    return SendFailure.PERMANENT


def _ends_connection(error: Exception) -> bool:
    """Return whether no further message can be sent over the connection that raised ``error``."""
    if codes := _smtp_codes(error):
        return 421 in codes
    if _http_status(error):
        return classify_error(error) is SendFailure.TEMPORARY
    if isinstance(error, smtplib.SMTPException):
        return isinstance(error, smtplib.SMTPServerDisconnected)
    return isinstance(error, OSError)


def _smtp_codes(error: Exception) -> list[int]:
    """Return the codes with which an SMTP server answered, one for each recipient."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return [code for code, _text in error.recipients.values()]
    return [error.smtp_code] if isinstance(error, smtplib.SMTPResponseException) else []


def _http_status(error: Exception) -> int | None:
    """Return the status with which the API of a mail service answered."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _functions_of_smtplib(error: Exception) -> set[str]:
    """Return the names of the functions of ``smtplib`` that ``error`` passed through. Nothing else
    tells at which step a connection broke; ``data`` transmits the message."""
    frames = (frame for frame, _line in traceback.walk_tb(error.__traceback__))
    return {
        frame.f_code.co_name for frame in frames if frame.f_globals.get("__name__") == "smtplib"
    }
