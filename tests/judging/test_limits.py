"""Connections that follow the server, and budgets."""

import threading
import time

import pytest
from po_dynamics.errors import InputError
from po_dynamics.judging.estimate import describe, estimate
from po_dynamics.judging.limits import Budget, Gate, Stopped
from po_dynamics.settings.judging.calls import Calls, Price

PRICE = Price(date="2026-10-01", input=2.0, output=8.0)


def test_a_gate_is_halved_once_a_round_and_grows_by_one_a_round():
    gate = Gate(32, threading.Event())
    with gate.request() as first, gate.request() as second:
        gate.slower(first, 0.0)
        gate.slower(second, 0.0)  # of the same round
    assert gate.limit == 16
    for _ in range(16):
        gate.answered()
    assert gate.limit == 17
    for _ in range(1000):
        gate.answered()
    assert gate.limit == 32
    for _ in range(10):
        with gate.request() as began:
            gate.slower(began, 0.0)
    assert gate.limit == 1


def test_a_gate_lets_nobody_through_while_the_server_asks_for_patience():
    gate = Gate(2, threading.Event())
    with gate.request() as began:
        gate.slower(began, 0.2)
    with gate.request() as later:
        assert later - began >= 0.2


def test_a_gate_holds_its_limit():
    gate, most, running = Gate(3, threading.Event()), 0, 0
    lock = threading.Lock()

    def work():
        nonlocal most, running
        with gate.request():
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.01)
            with lock:
                running -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def test_a_stopped_gate_is_closed():
    stop = threading.Event()
    gate = Gate(1, stop)
    stop.set()
    with pytest.raises(Stopped), gate.request():
        pass


def test_a_budget_counts_what_is_under_way_and_what_others_spent():
    calls = Calls(max_usd=1.0, prices={"m": PRICE})
    budget = Budget(calls, PRICE, lambda: (7, 0.5))
    assert budget.cost(100_000, 10_000) == pytest.approx(0.28)
    budget.reserve(0.28)
    with pytest.raises(InputError, match=r"max_usd = 1 is reached: 0\.7800 USD"):
        budget.reserve(0.28)
    budget.settle(0.28, 0.1)
    budget.reserve(0.28)


def test_a_budget_of_requests():
    budget = Budget(Calls(max_requests=9), None, lambda: (7, 0.0))
    budget.reserve(0.0)
    budget.reserve(0.0)
    with pytest.raises(InputError, match=r"max_requests = 9 is reached: 9 requests"):
        budget.reserve(0.0)


def test_an_estimate_is_of_prompts_tokens_money_and_time():
    about = estimate([4000] * 805, 1, PRICE, 0.5, 32)
    assert (about.prompts, about.prompt_tokens, about.reply_tokens) == (805, 805_000, 805)
    assert about.usd == pytest.approx(0.805 * 2 + 0.000805 * 8)
    assert about.seconds == 26 * 0.5
    assert "805 prompts" in describe(about)
    assert "1.616 USD at prices of 2026-10-01" in describe(about)
    assert "no price stated" in describe(estimate([4], 1, None, None, 1))
