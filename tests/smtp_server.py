"""A small SMTP server on a socket, which refuses mail as real ones do.

::

    with SMTPServer(max_connections=3) as server:
        use_mail_server(settings, server)
        ...
        assert server.recipients == ["ada@example.com"]
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from typing import Any

import django

Answer = Callable[[str, str], str]
"""Gets the command (CONNECT, MAIL, RCPT, DATA or END, which is after the message) and the
recipient, if it is known. Returns the response; "" accepts, and "hang up" closes the connection."""


class SMTPServer(socketserver.ThreadingTCPServer):
    """It takes ``max_connections`` at a time and ``max_messages`` for each; ``answer`` may refuse
    any command. ``messages`` are those accepted, as pairs of recipient and text."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        *,
        max_connections: int = 1000,
        max_messages: int = 1000,
        answer: Answer = lambda command, recipient: "",
    ) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.max_connections = max_connections
        self.max_messages = max_messages
        self.answer = answer
        self.messages: list[tuple[str, str]] = []
        self.connections = 0
        self.open_connections = 0
        self.most_open_connections = 0
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def recipients(self) -> list[str]:
        return [recipient for recipient, _text in self.messages]

    def __enter__(self) -> SMTPServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class HangUp(Exception):
    """The connection is closed without a response."""


class Session(socketserver.StreamRequestHandler):
    server: SMTPServer

    def handle(self) -> None:
        with self.server.lock:
            self.server.connections += 1
            self.server.open_connections += 1
            now_open = self.server.open_connections
            self.server.most_open_connections = max(now_open, self.server.most_open_connections)
        try:
            if now_open > self.server.max_connections:
                self.say("421 Too many connections")
            elif self.allows("CONNECT", "220 mail.example ready"):
                self.talk()
        except (HangUp, OSError):
            pass
        finally:
            with self.server.lock:
                self.server.open_connections -= 1

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def allows(self, command: str, accepted: str, recipient: str = "") -> bool:
        """Send the response to a command; return whether it was accepted."""
        refusal = self.server.answer(command, recipient)
        if refusal == "hang up":
            raise HangUp
        self.say(refusal or accepted)
        if refusal.startswith("421"):
            raise HangUp
        return not refusal

    def talk(self) -> None:
        recipient, begun = "", 0
        while line := self.rfile.readline().decode().strip():
            command = line[:4].upper()
            if command == "MAIL":
                if begun >= self.server.max_messages:
                    self.say("421 Too many messages in this connection")
                    return
                begun += 1
                self.allows("MAIL", "250 OK")
            elif command == "RCPT":
                recipient = line.partition("<")[2].partition(">")[0]
                self.allows("RCPT", "250 OK", recipient)
            elif command == "DATA":
                if self.allows("DATA", "354 Go on", recipient):
                    self.receive(recipient)
            elif command == "QUIT":
                self.say("221 Bye")
                return
            else:
                self.say("250 OK")

    def receive(self, recipient: str) -> None:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.decode())
        refusal = self.server.answer("END", recipient)
        if refusal in ("", "hang up"):
            # It may be accepted although the response is lost.
            self.server.messages.append((recipient, "".join(lines)))
        if refusal == "hang up":
            raise HangUp
        self.say(refusal or "250 Queued")


def use_mail_server(settings: Any, server: SMTPServer) -> None:
    """Have the site send its e-mail to ``server``."""
    backend = "django.core.mail.backends.smtp.EmailBackend"
    if django.VERSION >= (6, 1):
        options = {"host": "127.0.0.1", "port": server.port, "timeout": 5}
        settings.MAILERS = {"default": {"BACKEND": backend, "OPTIONS": options}}
    else:
        settings.EMAIL_BACKEND = backend
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.port
        settings.EMAIL_TIMEOUT = 5
