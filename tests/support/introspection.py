"""An authorization server's introspection endpoint on loopback (RFC 7662)."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import Any
from urllib.parse import parse_qs


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers by `tokens` (token -> claims; a token that is not there is not active). Use it in a `with` block.

    status: of every answer. body: in place of the answer, if set. delay_s: before it. asked: (Authorization, token) of each request.
    """

    daemon_threads = True

    def __init__(self, tokens: dict[str, dict[str, Any]]) -> None:
        self.tokens = tokens
        self.status, self.delay_s = 200, 0.0
        self.body: bytes | None = None
        self.asked: list[tuple[str | None, str]] = []
        super().__init__(("127.0.0.1", 0), _Request)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}/oauth/introspect"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Request(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        endpoint = self.server
        [token] = form["token"]
        good = self.path == "/oauth/introspect" and form["token_type_hint"] == ["access_token"]
        endpoint.asked.append((self.headers["Authorization"], token))
        time.sleep(endpoint.delay_s)
        claims = endpoint.tokens.get(token) if good else None
        body = endpoint.body
        if body is None:
            body = json.dumps({"active": True} | claims if claims is not None else {"active": False}).encode()
        self.send_response(endpoint.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass
