"""A hub on 127.0.0.1 that speaks the protocol huggingface_hub uses, and fails on demand.

Repositories are dicts of path to bytes. Large files (`lfs`) are served as the real hub does:
the resolve URL redirects to another origin, with their size and checksum in the headers.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from web_server import Handler, serving


@dataclass
class Repo:
    """One repository at one commit."""

    commit: str
    files: dict[str, bytes]
    branch: str = "main"
    lfs: bool = True


@dataclass
class Hub:
    """The state that the server answers from, and what it was asked.

    `cut` names files whose next body stops after so many bytes; `corrupt` files whose next
    body has a wrong byte; `status` answers all requests for a path with a code and an
    X-Error-Code.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    page_size: int = 1000
    url: str = ""
    cdn: str = ""

    def bodies(self, name: str = "") -> list[str]:
        """Range header of every download of a file so far ("" for the whole)."""
        return [r for method, path, r in self.requests if method == "GET" and name in path]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the hub and its storage host, each on a free port, while the body runs."""

    class HubHandler(_Handler):
        state = hub

    with serving(HubHandler) as hub.url, serving(HubHandler) as hub.cdn:
        yield hub


class _Handler(Handler):
    state: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(parse_qs(body.decode()))

    def _answer(self, form: dict[str, list[str]] | None = None) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path).strip("/")
        self.state.requests.append((self.command, path, self.headers.get("Range", "")))
        for part, (code, error) in self.state.status.items():
            if part in path:
                return self._send(code, b"", {"X-Error-Code": error, "X-Error-Message": error})
        words = path.split("/")
        if words[0] == "cdn":
            return self._cdn(words[1])
        if words[0] == "api":
            return self._api(words[1:], parse_qs(url.query), form or {})
        if words[0] == "datasets":
            words = words[1:]
        return self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))

    def _repo(self, name: str, revision: str) -> Repo | None:
        """The repository, or None after the error that the real hub would give."""
        repo = self.state.repos.get(name)
        if repo is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
        elif revision not in (repo.commit, repo.branch):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return repo

    def _api(
        self, words: list[str], query: dict[str, list[str]], form: dict[str, list[str]]
    ) -> None:
        if len(words) < 5:
            return self._send(404, b"", {})
        _, owner, name, verb, revision, *rest = words
        repo = self._repo(f"{owner}/{name}", revision)
        if repo is None:
            return None
        if verb == "revision":
            return self._json({"id": f"{owner}/{name}", "sha": repo.commit, "siblings": []})
        if verb == "paths-info":
            chosen = [path for path in form["paths"] if path in repo.files]
            return self._json([self._entry(repo, path) for path in chosen])
        assert verb == "tree"
        under = "/".join(rest) + "/" if rest else ""
        paths = sorted(path for path in repo.files if path.startswith(under))
        begin = int(query.get("cursor", ["0"])[0])
        end = begin + self.state.page_size
        link = {}
        if end < len(paths):
            here = f"{self.state.url}{urlsplit(self.path).path}?recursive=True&cursor={end}"
            link = {"Link": f'<{here}>; rel="next"'}
        folder = [{"type": "directory", "path": under + "sub", "oid": "0" * 40}]
        files = [self._entry(repo, path) for path in paths[begin:end]]
        return self._json([*folder, *files], link)

    def _entry(self, repo: Repo, path: str) -> dict[str, object]:
        body = repo.files[path]
        entry: dict[str, object] = {
            "type": "file",
            "path": path,
            "size": len(body),
            "oid": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest(),
        }
        if repo.lfs:
            digest = hashlib.sha256(body).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(body), "pointerSize": 134}
        return entry

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return None
        headers = {"X-Repo-Commit": repo.commit}
        if path not in repo.files:
            return self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        body = repo.files[path]
        if not repo.lfs:
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
            return self._body(path, body, headers)
        digest = hashlib.sha256(body).hexdigest()
        headers |= {
            "X-Linked-Size": str(len(body)),
            "X-Linked-ETag": f'"{digest}"',
            "Location": f"{self.state.cdn}/cdn/{digest}",
        }
        return self._send(302, b"", headers)

    def _cdn(self, digest: str) -> None:
        for repo in self.state.repos.values():
            for path, body in repo.files.items():
                if hashlib.sha256(body).hexdigest() == digest:
                    return self._body(path, body, {"ETag": f'"{digest}"'})
        return self._send(404, b"", {})

    def _body(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        code, begin = 200, 0
        if wanted := self.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            code = 206
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        if self.command == "GET" and path in self.state.corrupt:
            self.state.corrupt.remove(path)
            body = body[:-1] + bytes([body[-1] ^ 1])
        cut = self.state.cut.pop(path, None) if self.command == "GET" else None
        self._send(code, body[begin:], headers, cut)

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self._send(200, body, {"Content-Type": "application/json", **(headers or {})})

    def _send(
        self, code: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True
