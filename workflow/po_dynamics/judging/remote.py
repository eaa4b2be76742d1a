"""A judge behind an OpenAI-compatible endpoint: hosted, or a server of your own (vLLM, SGLang, llama.cpp)."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

from po_dynamics.errors import InputError
from po_dynamics.judging.answers import Answers
from po_dynamics.judging.client import Client, Refused
from po_dynamics.judging.estimate import describe, estimate, reply_limit, tokens_of
from po_dynamics.judging.ledger import Answer, Ledger, Paid
from po_dynamics.judging.limits import Budget, Stopped
from po_dynamics.judging.prompts import messages_of
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.settings.judging.directory import Judge

OPENAI = "https://api.openai.com/v1"  # of annotators that alpaca-eval ships
# What alpaca-eval's own client takes and a server does not know.
_OF_THE_CLIENT = ("model_name", "base_url", "num_procs", "batch_size", "requires_chatml")


def answering(judge: Judge, calls: Calls, ledger: Ledger) -> Answers:
    """The completion function of a remote judge, with an open ledger behind it."""
    sent, endpoint = sent_parameters(judge.parameters), endpoint_of(judge.parameters)
    budget = Budget(calls, calls.prices.get(sent["model"]), ledger.spent)
    asking = functools.partial(ask, parameters=judge.parameters, calls=calls, budget=budget)
    return Answers(asking, ledger, (sent, endpoint), columns_of, calls.max_missing)


def ask(
    prompts: Sequence[str], tolerated: int, *, parameters: Mapping[str, Any], calls: Calls, budget: Budget
) -> Iterator[tuple[int, Paid]]:
    """Answers in the order in which they come, each with the place of its prompt; a refused prompt has none.

    After a failure that concerns all, no request is begun, but those under way are waited for: they are paid.

    Args:
        prompts: as alpaca-eval writes them.
        tolerated: how many prompts may be refused before that is a failure of all.
        parameters: of alpaca-eval's `completions_kwargs`; what is not the client's is sent as it is.
        calls: how the server is reached.
        budget: what may be spent.

    Raises:
        InputError: the server refuses all, or the budget is spent, in one line.
    """
    client = Client(calls, endpoint_of(parameters))
    sent = sent_parameters(parameters)
    print(f"judge: {_forecast(prompts, sent, calls, budget)}", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(min(calls.connections, max(1, len(prompts)))) as pool:
        places = {pool.submit(_one, client, budget, prompt, sent): i for i, prompt in enumerate(prompts)}
        try:
            yield from _arriving(places, client.stop, tolerated)
        finally:
            client.stop.set()


def _arriving(places: Mapping[Future[Paid], int], stop: Event, tolerated: int) -> Iterator[tuple[int, Paid]]:
    """Answers as they come; the first failure of all, ours too, is raised when the last request has ended."""
    failure: Exception | None = None
    refusals: list[str] = []
    for future in as_completed(places):
        outcome = _outcome(future)
        if isinstance(outcome, Paid):
            yield places[future], outcome
            continue
        if isinstance(outcome, Refused):
            refusals.append(str(outcome))
            if len(refusals) <= tolerated:
                continue
            outcome = InputError(f"judge: {len(refusals)} prompts were refused, the last one with {outcome}")
        if not isinstance(outcome, Stopped):
            failure = failure or outcome
        stop.set()
    if refusals:
        print(f"judge: {len(refusals)} prompts were refused, the first one with {refusals[0]}", file=sys.stderr)
    if failure is not None:
        raise failure


def endpoint_of(parameters: Mapping[str, Any]) -> str:
    """The endpoint that a directory or the configuration names."""
    return str(parameters.get("base_url") or OPENAI).rstrip("/")


def sent_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent with every prompt."""
    rest = {name: value for name, value in parameters.items() if name not in _OF_THE_CLIENT}
    return {"model": parameters["model_name"], **rest}


def answer_of(reply: Mapping[str, Any]) -> Answer:
    """What is kept of a reply: text, why it ended, the model that served it, log-probs of each position's tokens."""
    choice = reply["choices"][0]
    positions = (choice.get("logprobs") or {}).get("content") or []
    return {
        "text": choice["message"].get("content") or "",
        "finish": choice.get("finish_reason"),
        "model": reply.get("model"),
        "top": [[[t.get("token"), t.get("logprob")] for t in p.get("top_logprobs") or [p]] for p in positions] or None,
    }


def columns_of(answer: Answer) -> dict[str, Any]:
    """An answer as alpaca-eval's parsers read it: `completions`, a text, and `completions_all`, a choice."""
    choice: dict[str, Any] = {"text": answer["text"], "finish_reason": answer["finish"]}
    if answer["top"]:
        content = [{"top_logprobs": [{"token": t, "logprob": p} for t, p in place]} for place in answer["top"]]
        choice["logprobs"] = {"content": content}
    return {"completions": answer["text"], "completions_all": choice}


def _one(client: Client, budget: Budget, prompt: str, sent: Mapping[str, Any]) -> Paid:
    if client.stop.is_set():
        raise Stopped
    try:
        return _paid(client, budget, prompt, sent)
    except InputError:
        client.stop.set()  # before this thread takes the next prompt
        raise


def _paid(client: Client, budget: Budget, prompt: str, sent: Mapping[str, Any]) -> Paid:
    reserved = budget.cost(tokens_of(prompt), reply_limit(sent))
    budget.reserve(reserved)
    usd, tokens = 0.0, None
    try:
        reply = client.ask(messages_of(prompt), sent)
        usd, tokens = reserved, _usage(reply)
        if tokens is not None:
            usd = budget.cost(*tokens)
    finally:
        budget.settle(reserved, usd)
    return Paid(answer_of(reply), usd, tokens)


def _usage(reply: Mapping[str, Any]) -> tuple[int, int] | None:
    try:
        return int(reply["usage"]["prompt_tokens"]), int(reply["usage"]["completion_tokens"])
    except (KeyError, TypeError, ValueError):
        return None


def _outcome(future: Future[Paid]) -> Paid | Exception:
    try:
        return future.result()
    except Exception as error:  # whatever it is, what others are paid for is waited for first
        return error


def _forecast(prompts: Sequence[str], sent: Mapping[str, Any], calls: Calls, budget: Budget) -> str:
    return describe(estimate([len(p) for p in prompts], reply_limit(sent), budget.price, None, calls.connections))


def check(judge: Judge, calls: Calls, prompt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Asks once: what is known of the server afterwards, and the answer's columns.

    Raises:
        InputError: wrong key, no such model, no such endpoint, in the provider's own words.
    """
    endpoint, sent = endpoint_of(judge.parameters), sent_parameters(judge.parameters)
    began = time.monotonic()
    try:
        answer = answer_of(Client(calls, endpoint).ask(messages_of(prompt), sent))
    except Refused as error:
        raise InputError(f"judge at {endpoint}: {error}") from None
    about = {"model": sent["model"], "served_model": answer["model"], "endpoint": endpoint}
    return about | {"seconds_per_call": round(time.monotonic() - began, 3)}, columns_of(answer)
