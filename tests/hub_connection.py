"""The plumbing of the Hub on loopback: requests, answers, who may do what."""

import json
import re
from dataclasses import dataclass, field
from functools import partialmethod
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"


@dataclass
class Repository:
    """Commits by hash, each a mapping of paths to `(content, sha256 where it is LFS)`; branches and tags by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, tuple[bytes, str | None]]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Connection(BaseHTTPRequestHandler):
    """Finds out what a request wants, and sends what a route answers; the routes are a subclass's."""

    server: Any
    routes: ClassVar[dict[str, str]]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def handle_request(self, method: str) -> None:
        """Finds the route, and answers with what it returns, or with its error."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        request = f"{self.command} {url.path}"
        try:
            with self.server.guard:
                self.server.requests.append(request)
            status = self.server.spend(self.server.faults, request)
            if status is not None:
                raise HubError(status, message="broken on purpose")
            for route, name in self.routes.items():
                match = re.fullmatch(route, f"{method} {url.path}")
                if match:
                    with self.server.guard:
                        getattr(self, f"on_{name}")(body, *(unquote(part or "") for part in match.groups()))
                    return
            raise HubError(404, message=f"no route for {request}")
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.send(error.status, error.message.encode(), {name: value for name, value in headers.items() if value})

    do_GET = partialmethod(handle_request, "GET")  # noqa: N815
    do_HEAD = partialmethod(handle_request, "GET")  # noqa: N815
    do_POST = partialmethod(handle_request, "POST")  # noqa: N815
    do_PUT = partialmethod(handle_request, "PUT")  # noqa: N815

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends an answer; one that is to be cut breaks off in its body."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.server.spend(self.server.cut, f"{self.command} {urlsplit(self.path).path}")
            self.wfile.write(body if cut is None else body[:cut])
            self.close_connection = self.close_connection or cut is not None

    def send_json(self, content: Any) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        """A file, or the part of it that was asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if not wanted:
            return self.send(200, content, headers)
        first = int(wanted[1])
        span = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self.send(206, content[first:], headers | {"Content-Range": span})

    # --- who may do what ---

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def writer(self) -> None:
        if not self.is_known:
            raise HubError(401, message="Invalid username or password.")

    def repository(self, name: str) -> Repository:
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.is_known):
            # who is not logged in is not told whether it is there
            raise HubError(404 if self.is_known else 401, "RepoNotFound" if self.is_known else "", "Repository not found")
        return found

    def commit_of(self, name: str, revision: str) -> tuple[str, dict[str, tuple[bytes, str | None]]]:
        repository = self.repository(name)
        commit = repository.references.get(revision or "main", revision)
        if commit not in repository.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]
