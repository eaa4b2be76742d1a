"""One request to an OpenAI-compatible server, and what became of it.

Transport, connections and time-outs are the `openai` client's, repetition is tenacity's. Three things end a request
without an answer: `Refused` concerns this prompt alone (too long, say), `InputError` every prompt (key, model, quota),
and what may pass (429, 5xx, a lost connection, a time-out) is tried again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any

import openai
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from po_dynamics.errors import InputError
from po_dynamics.judging.limits import Gate
from po_dynamics.settings.judging.calls import Calls, is_address

Message = Mapping[str, str]

LONGEST_PAUSE = 300.0  # seconds of Retry-After that are waited for; a longer one is a quota
_BACKOFF = wait_random_exponential(multiplier=0.5, max=30)  # full jitter, seconds
_PASSING = (408, 409, 425, 429)
_OF_THE_PROMPT = (400, 413, 422)
_SPENT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded")


class Refused(Exception):
    """The server does not answer this prompt, and will not."""


class _Passing(Exception):
    """A failure that may pass; the server may have said after how many seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Client:
    """Asks one endpoint. Safe to use from several threads."""

    def __init__(self, calls: Calls, endpoint: str, stop: Event | None = None) -> None:
        self.calls, self.key = calls, _key(calls)
        self.stop = stop or Event()
        self.gate = Gate(calls.connections, self.stop)
        address = os.environ.get("JUDGE_ENDPOINT") or endpoint
        if not is_address(address):
            raise InputError("JUDGE_ENDPOINT must be an address like http://node:8000/v1, without password or query")
        self._openai = openai.OpenAI(api_key=self.key or "none", base_url=address, timeout=calls.timeout, max_retries=0)
        self._where = f"{endpoint} at {address}" if address != endpoint else endpoint

    def ask(self, messages: Sequence[Message], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The reply, as the server's JSON says it; `parameters` are sent as they are, `model` among them.

        Raises:
            Refused: this prompt gets no answer.
            InputError: none does, in the provider's own words; or this one did not in `attempts` attempts.
            Stopped: no answer is wanted any more.
        """
        retrying = Retrying(
            stop=stop_after_attempt(self.calls.attempts),
            wait=_pause,
            retry=retry_if_exception_type(_Passing),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._attempt, messages, parameters)
        except _Passing as error:
            raise self._fatal(f"{error}, {self.calls.attempts} times") from None

    def _sleep(self, seconds: float) -> None:
        self.stop.wait(seconds)

    def _attempt(self, messages: Sequence[Message], parameters: Mapping[str, Any]) -> dict[str, Any]:
        with self.gate.request() as began:
            try:
                return self._send(messages, parameters)
            except _Passing as error:
                if error.retry_after is not None:
                    self.gate.slower(began, error.retry_after)
                raise

    def _send(self, messages: Sequence[Message], parameters: Mapping[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in parameters.items() if name != "model"}
        create: Any = self._openai.chat.completions.with_raw_response.create
        try:
            raw = create(model=parameters["model"], messages=list(messages), extra_body=rest)
            reply = raw.http_response.json()
            reply["choices"][0]["message"]
        except openai.APIStatusError as error:
            raise self._sorted(error) from None
        except openai.APIConnectionError as error:  # time-outs too
            raise _Passing(self._told(error)) from None
        except (ValueError, LookupError, TypeError):
            raise _Passing("the reply is not a chat completion") from None
        self.gate.answered()
        return dict(reply)

    def _sorted(self, error: openai.APIStatusError) -> Exception:
        """What an answer with an error status means."""
        status, told = error.status_code, self._told(error)
        spent = str(error.code) in _SPENT or str(error.type) in _SPENT
        if (status in _PASSING or status >= 500) and not spent:
            patience = _retry_after(error)
            if patience is None or patience <= LONGEST_PAUSE:
                return _Passing(told, patience if patience is not None else 0.0 if status == 429 else None)
        return Refused(told) if status in _OF_THE_PROMPT else self._fatal(told)

    def _told(self, error: openai.APIError) -> str:
        """The provider's own words in one line, without the key."""
        body = error.body if isinstance(error.body, Mapping) else {}
        words = " ".join(str(body.get("message") or error.message).split())[:400]
        status = getattr(error, "status_code", None)
        return self._hidden(f"{status}: {words}" if status and str(status) not in words else words)

    def _hidden(self, text: str) -> str:
        return text.replace(self.key, "(key)") if self.key else text

    def _fatal(self, told: str) -> InputError:
        return InputError(f"judge at {self._where}: {told}; answers so far are kept, running again asks for the rest")


def _pause(state: RetryCallState) -> float:
    """Seconds until the next attempt: what the server asked for and a little more, or exponential with full jitter."""
    backoff = _BACKOFF(state)
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, _Passing) else None
    return asked + min(backoff, 1.0) if asked else backoff


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds of the header; dates are rare here and count as absent."""
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _key(calls: Calls) -> str | None:
    if calls.key is None:
        return None
    if not (key := os.environ.get(calls.key, "").strip()):
        raise InputError(
            f"configuration key 'evaluation.judging.key' names {calls.key}, and there is no such environment variable"
        )
    return key
