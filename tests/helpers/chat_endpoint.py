"""A small chat endpoint on this machine, for the tests of the judge that speaks to one. Real HTTP, real client."""

import json
import math
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bulwark.judges.openai import PROBE


def choice(text: str, candidates: dict[str, float] | None = None, finish: str = "stop") -> dict:
    """A completion that says `text`; candidates: {token: probability} of its first token."""
    top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in (candidates or {}).items()]
    first = {"token": text, "logprob": top[0]["logprob"] if top else 0.0, "bytes": None, "top_logprobs": top}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish,
                "logprobs": {"content": [first], "refusal": None} if candidates else None,
            }
        ],
    }


class Endpoint:
    """Answers with `respond(body) -> (status, content)`; keeps the bodies it was sent and how many came at once.

    content: plain data, a text, which is sent as a page, or bytes, which are sent as they are, as JSON.

    number: how its tokenizer begins "57", which the judge asks for before it reads scores of several digits; that
    request is not kept.
    """

    def __init__(self, respond, delay: float = 0.0, number: str = "57"):
        self.respond, self.delay, self.number = respond, delay, number
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.running = self.most = 0
        self.lock = threading.Lock()


@contextmanager
def serving(endpoint: Endpoint, monkeypatch):
    """Serve `endpoint` on a free port, which the environment then names to the client."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body["messages"][0]["content"] == PROBE:
                return self.say(200, choice(endpoint.number, {endpoint.number: 1.0}))
            with endpoint.lock:
                endpoint.bodies.append(body)
                endpoint.keys.add(self.headers["Authorization"])
                endpoint.running += 1
                endpoint.most = max(endpoint.most, endpoint.running)
            time.sleep(endpoint.delay)
            status, content, *headers = endpoint.respond(body)
            with endpoint.lock:
                endpoint.running -= 1
            self.say(status, content, headers[0] if headers else {})

        def say(self, status, content, headers=()):
            page = isinstance(content, str)
            data = content if isinstance(content, bytes) else (content if page else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if page else "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
