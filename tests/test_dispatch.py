"""What tells receivers apart, in every process and on each supported Django."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kapso_connect import onboarding, outbox
from kapso_connect.dispatch import ConnectSignal
from kapso_connect.models import Connection, TimelineEvent
from kapso_connect.onboarding import numbers
from kapso_connect.signals import whatsapp_connected

from .factories import make_customer, new_number_id
from .test_outbox import make_due

HERE = "tests.test_dispatch"

calls: list[str] = []


def act(name: str) -> None:
    calls.append(name)
    if name == "bad":
        raise RuntimeError("receiver is broken")


class Handler:
    def __init__(self, name: str) -> None:
        self.name = name

    def handle(self, **kwargs: Any) -> None:
        act(self.name)

    def __call__(self, **kwargs: Any) -> None:
        act(self.name)


class OtherHandler(Handler):
    pass


def function(name: str, **kwargs: Any) -> None:
    act(name)


def decorated(name: str) -> Callable[..., None]:
    def inner(**kwargs: Any) -> None:
        act(name)

    @functools.wraps(inner)
    def wrapper(**kwargs: Any) -> None:
        inner(**kwargs)

    return wrapper


def asynchronous(name: str) -> Callable[..., Any]:
    async def receiver(**kwargs: Any) -> None:
        act(name)

    return receiver


class AsynchronousHandler(Handler):
    async def __call__(self, **kwargs: Any) -> None:
        act(self.name)


def around_asynchronous(name: str) -> Callable[..., Any]:
    receiver = asynchronous(name)

    @functools.wraps(receiver)
    def wrapper(**kwargs: Any) -> Any:
        return receiver(**kwargs)

    return wrapper


class Method:
    """A decorator of methods, as many are: it has no ``__name__``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return types.MethodType(self, instance)

    def __call__(self, instance: Any, **kwargs: Any) -> None:
        self.function(instance, **kwargs)


class WithDecoratedMethod(Handler):
    decorated = Method(Handler.handle)


class Bound:
    """Two methods of one object, and methods of its class."""

    @classmethod
    def on_class(cls, **kwargs: Any) -> None:
        act("bad")

    @staticmethod
    def on_static(**kwargs: Any) -> None:
        act("good")


PAIRS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "bound methods": lambda name: Handler(name).handle,
    "callable objects": Handler,
    "partials": lambda name: functools.partial(function, name),
    "partials of methods": lambda name: functools.partial(Handler(name).handle, more=1),
    "lambdas": lambda name: lambda **kwargs: act(name),
    "decorated functions": decorated,
    "asynchronous functions": asynchronous,
    "asynchronous objects": AsynchronousHandler,
    "functions around asynchronous ones": around_asynchronous,
    "methods without a name": lambda name: WithDecoratedMethod(name).decorated,
}


@pytest.fixture(autouse=True)
def _no_calls() -> Iterator[None]:
    calls.clear()
    yield
    whatsapp_connected.receivers.clear()
    whatsapp_connected.sender_receivers_cache.clear()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("order", "with_uid"), [("bad good", False), ("good bad", False), ("bad good", True)]
)
@pytest.mark.parametrize("kind", PAIRS)
def test_only_the_one_that_raised_is_called_again(kind: str, order: str, with_uid: bool) -> None:
    first, second = order.split()
    # Kept here: receivers are referenced weakly.
    receivers = {name: PAIRS[kind](name) for name in (first, second)}
    for name, receiver in receivers.items():
        whatsapp_connected.connect(receiver, dispatch_uid=f"uid-{name}" if with_uid else None)
    onboarding.connect(make_customer(), numbers.Number(new_number_id()), source="webhook")
    event = TimelineEvent.objects.latest("pk")
    assert calls == [first, second]
    if with_uid:
        assert event.receivers == ["uid-good"]
        assert event.last_error == "uid-bad: RuntimeError: receiver is broken"
    for _ in range(2):
        make_due(event)
        assert not outbox.deliver(event.pk)
    assert calls == [first, second, "bad", "bad"]


def test_names_are_the_same_in_every_process() -> None:
    signal = ConnectSignal("")
    handler, other = Handler("a"), OtherHandler("b")
    receivers = [
        function,
        handler.handle,
        other.handle,
        Bound.on_class,
        Bound.on_static,
        handler,
        functools.partial(function, "c"),
        decorated("d"),
        decorated("e"),
    ]
    for receiver in receivers:
        signal.connect(receiver, weak=False)
    found = signal.named_receivers(Connection)
    assert list(found.values()) == receivers
    assert list(found) == [
        f"{HERE}.function",
        f"{HERE}.Handler.handle",
        f"{HERE}.OtherHandler.handle",
        f"{HERE}.Bound.on_class",
        f"{HERE}.Bound.on_static",
        f"{HERE}.Handler",
        f"{HERE}.function#2",
        f"{HERE}.decorated.<locals>.inner",
        f"{HERE}.decorated.<locals>.inner#2",
    ]


def test_receivers_of_other_senders_and_deleted_ones_are_left_out() -> None:
    signal = ConnectSignal("")
    kept, deleted = Handler("a"), Handler("b")
    signal.connect(kept.handle, sender=Connection, dispatch_uid="kept")
    signal.connect(kept.handle, sender=TimelineEvent, dispatch_uid="other")
    signal.connect(deleted.handle, dispatch_uid="deleted")
    del deleted
    assert list(signal.named_receivers(Connection)) == ["kept"]


def test_uid_that_is_another_receivers_name_hides_nothing() -> None:
    signal = ConnectSignal("")
    for uid in (None, f"{HERE}.function", f"{HERE}.function#2", ("not", "a text")):
        signal.connect(functools.partial(function, "a"), weak=False, dispatch_uid=uid)
    assert list(signal.named_receivers(Connection)) == [
        f"{HERE}.function",
        f"{HERE}.function#2",
        f"{HERE}.function#2#2",
        f"{HERE}.function#3",
    ]


def test_asynchronous_receivers_come_last_as_django_calls_them() -> None:
    signal = ConnectSignal("")
    receiver = asynchronous("a")
    signal.connect(receiver)
    signal.connect(function)
    names = list(signal.named_receivers(Connection))
    assert names == [f"{HERE}.function", f"{HERE}.asynchronous.<locals>.receiver"]
