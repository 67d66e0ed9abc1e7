"""Object stores on 127.0.0.1: an S3 server, and a web server that counts and fails on demand."""

import logging
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any
from urllib.parse import unquote

from web_server import Handler, serving


@contextmanager
def serve_s3() -> Iterator[str]:
    """Run an S3 server on a free port while the body runs; gives its endpoint."""
    # Slow to import, and few tests need it.
    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    s3, control = create_backend_app("s3"), create_backend_app("moto_api")

    # Moto's own dispatcher looks through all of its services at every request.
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        chosen = control if environ["PATH_INFO"].startswith("/moto-api") else s3
        return chosen(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_bucket(endpoint: str, name: str) -> None:
    """Make an empty bucket, and forget all else that the server holds."""
    for path, method in (("moto-api/reset", "POST"), (name, "PUT")):
        request = urllib.request.Request(f"{endpoint}/{path}", method=method)
        urllib.request.urlopen(request).close()


def put_public(endpoint: str, bucket: str, key: str, data: bytes) -> None:
    """Write an object that anybody may read; all others need a signature."""
    request = urllib.request.Request(f"{endpoint}/{bucket}/{key}", data=data, method="PUT")
    request.add_header("x-amz-acl", "public-read")
    request.add_header("Content-Type", "application/octet-stream")  # a form would be parsed
    urllib.request.urlopen(request).close()


@dataclass
class Web:
    """Files by path, what was asked for, and what is to go wrong.

    `cut` says how many bodies of a file are still to end after ten bytes, `status` answers
    all requests for a file with a code; without `ranges` the server sends only whole files.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    url: str = ""

    def fetched(self, path: str) -> list[tuple[int, int]]:
        """First and last byte of every part of a file that was asked for."""
        asked = (r for method, p, r in self.requests if (method, p) == ("GET", path))
        spans = (r.removeprefix("bytes=").split("-") for r in asked)
        return [(int(first), int(last)) for first, last in spans]


@contextmanager
def serve_web() -> Iterator[Web]:
    """Run a web server on a free port while the body runs."""
    web = Web()

    class WebHandler(_Handler):
        state = web

    with serving(WebHandler) as web.url:
        yield web


class _Handler(Handler):
    state: Web

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path).strip("/")
        wanted = self.headers.get("Range", "")
        self.state.requests.append((self.command, path, wanted))
        body, code = self.state.files.get(path, b""), 200
        span = ""
        if wanted and self.state.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            if not first:  # so many bytes before the end
                first, last = str(max(0, len(body) - int(last))), str(len(body))
            last = min(int(last), len(body) - 1)
            span, code = f"bytes {first}-{last}/{len(body)}", 206
            body = body[int(first) : last + 1]
        if path not in self.state.files:
            body, code = b"", 404
        if path in self.state.status:
            body, code = b"", self.state.status[path]
        self.send_response(code)
        if span and code == 206:
            self.send_header("Content-Range", span)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            if self.state.cut.get(path, 0) and len(body) > 10:
                self.state.cut[path] -= 1
                self.close_connection = True
                body = body[:10]
            self.wfile.write(body)
