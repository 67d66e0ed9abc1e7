"""Web servers on 127.0.0.1."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """A handler that keeps connections open and logs nothing."""

    protocol_version = "HTTP/1.1"
    # A body waits for the acknowledgement of its headers otherwise, which takes 40 ms.
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serving(handler: type[Handler]) -> Iterator[str]:
    """Run a web server on a free port while the body runs; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    # Shutting down waits for one interval of polling.
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
