"""A Hugging Face Hub on loopback: as much of its HTTP interface as `huggingface_hub` uses for models. Standard library and YAML.

Repositories are kept in memory. Files above `regular_limit`, and safetensors, are uploaded through LFS, in parts above `part_size`, as on
the real Hub. Writing needs the token. `faults` and `cut` break what a test wants broken.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any, ClassVar

import yaml
from hub_connection import Connection, HubError, Repository


class LoopbackHub(ThreadingHTTPServer):
    """The server; `url` is its address."""

    daemon_threads = True

    def __init__(self, regular_limit: int = 10 * 2**20, part_size: int = 5 * 2**20) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.regular_limit, self.part_size = regular_limit, part_size
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        self.faults: dict[str, tuple[int, int]] = {}
        """By a pattern of "METHOD /path": how many of the next such requests are answered with which status."""
        self.cut: dict[str, tuple[int, int]] = {}
        """By a pattern: how many of the next such bodies break off after how many bytes."""
        self.guard = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage_url(self) -> str:
        """The same under another name: large files lie on another host, which is not told the token."""
        return f"http://localhost:{self.server_port}"

    def count(self, pattern: str) -> int:
        """How many requests so far match."""
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def spend(self, budgets: dict[str, tuple[int, int]], request: str) -> int | None:
        """What the first matching budget says, with one use less; None where none is left."""
        with self.guard:
            for pattern, (left, value) in budgets.items():
                if left > 0 and re.search(pattern, request):
                    budgets[pattern] = (left - 1, value)
                    return value
        return None


@contextmanager
def serve(**options: int) -> Iterator[LoopbackHub]:
    """Runs a server for as long as the context lasts."""
    with LoopbackHub(**options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Handler(Connection):
    """What each route answers."""

    routes: ClassVar[dict[str, str]] = {
        "POST /api/repos/create": "create",
        "POST /api/validate-yaml": "validate",
        r"GET /api/models/([^/]+/[^/]+)": "info",
        r"GET /api/models/([^/]+/[^/]+)/revision/([^/]+)": "info",
        r"GET /api/models/([^/]+/[^/]+)/tree/([^/]+)": "tree",
        r"POST /api/models/([^/]+/[^/]+)/preupload/([^/]+)": "preupload",
        r"POST /api/models/([^/]+/[^/]+)/commit/([^/]+)": "commit",
        r"POST /api/models/([^/]+/[^/]+)/(?:branch|tag)/([^/]+)": "reference",
        r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": "batch",
        r"PUT /lfs/([0-9a-f]+)(?:/(\d+))?": "put",
        r"POST /lfs/([0-9a-f]+)/complete": "complete",
        r"POST /lfs/([0-9a-f]+)/verify": "verify",
        r"GET /lfs/([0-9a-f]+)": "blob",
        r"GET /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": "resolve",
    }

    def on_create(self, body: bytes) -> None:
        self.writer()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            self.send(409, json.dumps({"url": f"{self.server.url}/{name}"}).encode())
            return
        repository = self.server.repositories[name] = Repository(private=asked.get("visibility") == "private")
        self.add_commit(name, repository, "main", {".gitattributes": (b"*.safetensors filter=lfs\n", None)})
        self.send_json({"url": f"{self.server.url}/{name}"})

    def on_validate(self, body: bytes) -> None:
        """The metadata must be YAML between rules, and name a licence."""
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            data = str(error)
        if isinstance(data, dict) and isinstance(data.get("license"), str):
            return self.send_json({"errors": [], "warnings": []})
        return self.send(400, json.dumps({"errors": [{"message": f"metadata: {data}"}], "warnings": []}).encode())

    def on_info(self, body: bytes, name: str, revision: str = "") -> None:
        commit, files = self.commit_of(name, revision)
        siblings = [{"rfilename": path} for path in files]
        self.send_json({"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def on_tree(self, body: bytes, name: str, revision: str) -> None:
        _, files = self.commit_of(name, revision)
        listed = []
        for path, (content, sha256) in files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            listed.append(entry | ({"lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}} if sha256 else {}))
        self.send_json(listed)

    def on_preupload(self, body: bytes, name: str, revision: str) -> None:
        self.writer()
        _, files = self.commit_of(name, revision)
        answers = []
        for file in json.loads(body)["files"]:
            is_large = file["size"] > self.server.regular_limit or file["path"].endswith(".safetensors")
            content, sha256 = files.get(file["path"], (None, None))
            oid = sha256 or (None if content is None else git_hash(content))
            mode = "lfs" if is_large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": answers})

    def on_batch(self, body: bytes, name: str) -> None:
        self.writer()
        self.repository(name)
        objects = []
        for asked in json.loads(body)["objects"]:
            oid, size, href = asked["oid"], asked["size"], f"{self.server.url}/lfs/{asked['oid']}"
            upload: dict[str, Any] = {"href": href}
            if size > self.server.part_size:
                count = -(-size // self.server.part_size)
                header = {str(part): f"{href}/{part}" for part in range(1, count + 1)}
                upload = {"href": f"{href}/complete", "header": header | {"chunk_size": str(self.server.part_size)}}
            actions = {} if oid in self.server.blobs else {"actions": {"upload": upload, "verify": {"href": f"{href}/verify"}}}
            objects.append({"oid": oid, "size": size} | actions)
        self.send_json({"transfer": "basic", "objects": objects})

    def on_put(self, body: bytes, oid: str, part: str) -> None:
        if part:
            self.server.parts.setdefault(oid, {})[int(part)] = body
        else:
            self.keep(oid, body)
        self.send(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def on_complete(self, body: bytes, oid: str) -> None:
        parts = self.server.parts.pop(oid)
        etags = {part["partNumber"]: part["etag"] for part in json.loads(body)["parts"]}
        if etags != {number: f'"{hashlib.md5(content).hexdigest()}"' for number, content in parts.items()}:
            raise HubError(400, message="parts do not match")
        self.keep(oid, b"".join(parts[number] for number in sorted(parts)))
        self.send_json({})

    def on_verify(self, body: bytes, oid: str) -> None:
        if oid not in self.server.blobs or json.loads(body)["size"] != len(self.server.blobs[oid]):
            raise HubError(404, message="not uploaded")
        self.send_json({})

    def keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, message="the content is not what its hash says")
        self.server.blobs[oid] = content

    def on_commit(self, body: bytes, name: str, revision: str) -> None:
        self.writer()
        _, files = self.commit_of(name, revision)
        files, repository = dict(files), self.repository(name)
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                content = base64.b64decode(value["content"])
                if len(content) > self.server.regular_limit:
                    raise HubError(413, message=f"{value['path']} is too large for a regular upload")
                files[value["path"]] = (content, None)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    raise HubError(400, message="an LFS file was not uploaded")
                files[value["path"]] = (self.server.blobs[value["oid"]], value["oid"])
        commit = self.add_commit(name, repository, revision, files)
        self.send_json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit, "pullRequestUrl": None})

    def add_commit(self, name: str, repository: Repository, branch: str, files: dict[str, tuple[bytes, str | None]]) -> str:
        commit = hashlib.sha1(f"{name} {branch} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.references[branch] = commit
        return commit

    def on_reference(self, body: bytes, name: str, reference: str) -> None:
        """A branch, at its starting point; or a tag, at this reference."""
        self.writer()
        repository, asked = self.repository(name), json.loads(body or b"{}")
        made, at = (asked["tag"], reference) if "tag" in asked else (reference, asked.get("startingPoint", "main"))
        if made in repository.references:
            raise HubError(409, message="it is there already")
        repository.references[made] = self.commit_of(name, at)[0]
        self.send_json({})

    def on_resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        """A small file itself; for an LFS file, where its content is."""
        commit, files = self.commit_of(name, revision)
        if self.repository(name).gated and not self.is_known:
            raise HubError(403, "GatedRepo", f"Access to {name} is restricted")
        if path not in files:
            raise HubError(404, "EntryNotFound", f"{path} does not exist")
        content, sha256 = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha256 or git_hash(content)}"'}
        if sha256 is None:
            return self.send_file(content, headers)
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
        return self.send(302, b"", headers | {"Location": f"{self.server.storage_url}/lfs/{sha256}"})

    def on_blob(self, body: bytes, oid: str) -> None:
        self.send_file(self.server.blobs[oid], {"ETag": f'"{oid}"'})


def git_hash(content: bytes) -> str:
    """What git calls this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
