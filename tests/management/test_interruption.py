"""Signals that ask a command to stop."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from kapso_connect.management.interruption import (
    STOPPING_SIGNALS,
    Interrupted,
    exit_status,
    interruption,
)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in STOPPING_SIGNALS]


def test_handlers_of_the_caller_are_restored() -> None:
    before = handlers()
    with interruption() as interrupted:
        assert handlers() != before
    assert handlers() == before
    assert not interrupted.is_set()
    interrupted.raise_if_set()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_second_signal_has_its_usual_effect(number: int, status: int) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda *args: heard.append(number))
    try:
        with interruption() as interrupted:
            signal.raise_signal(number)
            assert (interrupted.is_set(), heard) == (True, [])
            signal.raise_signal(number)
            assert heard == [number]
    finally:
        signal.signal(number, before)
    with pytest.raises(Interrupted) as caught:
        interrupted.raise_if_set()
    assert exit_status(caught.value) == status


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interruption() as interrupted:
            signal.raise_signal(signal.SIGTERM)
            assert not interrupted.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nothing_is_changed_in_another_thread() -> None:
    before = handlers()

    def work() -> list[object]:
        with interruption():
            return handlers()

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(work).result() == before
