"""A small OpenAI-compatible server on loopback whose model prefers the longer answer, and which can be made to fail.

    with JudgeServer(fault=lambda prompt, attempt: Fault(429) if attempt == 0 else None) as server:

`fault` is asked about every request: the prompt and how often this prompt was asked before. What it returns is sent;
None is a proper answer.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

LABELS = ("m", "M")


@dataclass(frozen=True)
class Fault:
    """An error status with OpenAI's body, or one of `drop` (no reply), `half` (a torn one), `garbage` (no JSON)."""

    status: int = 500
    message: str = "the server had an error"
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""


def preference(prompt: str) -> float:
    """P(first is better) of the two outputs in alpaca-eval's template: logistic in the difference of lengths."""
    first, second = re.findall(r'"output": """(.*?)"""', prompt, flags=re.DOTALL)
    return 1 / (1 + math.exp((len(second) - len(first)) / 4))


class JudgeServer:
    """Serves in a thread; `asked` counts requests and `paid` proper answers by prompt, `keys` are those it got."""

    def __init__(
        self,
        fault: Callable[[str, int], Fault | None] = lambda prompt, attempt: None,
        latency: float = 0.0,
        logprobs: bool = True,
    ) -> None:
        self.fault, self.latency, self.logprobs = fault, latency, logprobs
        self.asked: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.running = self.most_running = 0
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        server = self

        class Handler(_Handler):
            judge = server

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    def count(self, change: int) -> None:
        with self.lock:
            self.running += change
            self.most_running = max(self.most_running, self.running)

    def reply(self, request: Mapping[str, Any], prompt: str) -> dict[str, Any]:
        first = preference(prompt)
        label = LABELS[first < 0.5]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice["message"] = {"role": "assistant", "content": label}
        if self.logprobs and request.get("logprobs"):
            chances = zip(LABELS, (first, 1 - first), strict=True)
            top = [{"token": token, "logprob": math.log(max(p, 1e-300)), "bytes": None} for token, p in chances]
            choice["logprobs"] = {"content": [{"token": label, "logprob": -0.1, "top_logprobs": top}]}
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": 1, "total_tokens": len(prompt) // 4 + 1}
        return {"id": "1", "object": "chat.completion", "model": "served", "choices": [choice], "usage": usage}


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients that are killed close their connections."""


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        judge = self.judge
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = "\n".join(message["content"] for message in request["messages"])
        with judge.lock:
            attempt = judge.asked[prompt]
            judge.asked[prompt] += 1
            judge.keys.add(self.headers.get("Authorization"))
        judge.count(1)
        try:
            time.sleep(judge.latency)
            if (fault := judge.fault(prompt, attempt)) is not None:
                self._fail(fault)
                return
            with judge.lock:
                judge.paid[prompt] += 1
            self._send(200, json.dumps(judge.reply(request, prompt)).encode(), {})
        finally:
            judge.count(-1)

    def _fail(self, fault: Fault) -> None:
        if fault.kind == "drop":
            self.close_connection = True
        elif fault.kind == "half":
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "1", "cho')
        elif fault.kind == "garbage":
            self._send(200, b"<html>busy</html>", {})
        else:
            error = {"error": {"message": fault.message, "type": "error", "code": fault.code}}
            self._send(fault.status, json.dumps(error).encode(), fault.headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
