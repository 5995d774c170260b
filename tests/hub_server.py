"""A Hub on loopback: the part of huggingface.co's HTTP interface that pushing and loading models needs."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".png", ".bin")
ROUTES = [  # method, path, handler; {repo} is owner/name, {kind} models or spaces
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/{kind}/{repo}/preupload/([^/]+)", "preupload"),
    ("POST", r"/api/{kind}/{repo}/commit/([^/]+)", "commit"),
    ("POST", r"/api/{kind}/{repo}/branch/([^/]+)", "create_branch"),
    ("GET", r"/api/{kind}/{repo}/refs", "refs"),
    ("GET", r"/api/{kind}/{repo}/tree/([^/]+)", "tree"),
    ("GET", r"/api/{kind}/{repo}/revision/([^/]+)", "info"),
    ("GET", r"/api/{kind}/{repo}", "info"),
    ("POST", r"/(?:spaces/)?{repo}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/([0-9a-f]{64})", "lfs_put"),
    ("GET", r"/{repo}/resolve/([^/]+)/(.+)", "resolve"),
]
PARTS = {"{repo}": r"([^/]+/[^/]+?)", "{kind}": r"(?:models|spaces)"}
for part, pattern in PARTS.items():
    ROUTES = [(method, path.replace(part, pattern), name) for method, path, name in ROUTES]
ROUTES = [(method, re.compile(path + "$"), name) for method, path, name in ROUTES]


class HubError(Exception):
    """An answer that is not 200: status, `X-Error-Code` and message."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class Repo:
    """Commits by hash, each a snapshot of {path: etag}, and the branches that point to them."""

    def __init__(self, private):
        self.private, self.commits, self.refs, self.messages = private, {}, {}, []
        self.add("main", {}, "initial commit")

    def add(self, ref, files, message):
        content = json.dumps([self.refs.get(ref), sorted(files.items()), message]).encode()
        oid = hashlib.sha1(content).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        self.messages.append(message)
        return oid

    def commit_of(self, revision):
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid


class HubServer(ThreadingHTTPServer):
    """
    Serves repos from memory.

    Args:
        tokens: user by token; a token that is taken out of it has expired.

    `cut` holds names of files whose next download ends half way, `corrupt` hashes of files whose bytes are wrong on
    the way, `requests` what was asked for, `ranges` the files of which a part was, and its first byte.
    """

    daemon_threads = True

    def __init__(self, tokens=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = {"hf_alice": "alice", "hf_bob": "bob"} if tokens is None else tokens
        self.repos, self.blobs, self.requests, self.ranges = {}, {}, [], []
        self.cut, self.corrupt = set(), set()
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def files(self, repo_id, revision="main"):
        """{path: bytes} of a revision."""
        repo = self.repos[repo_id]
        return {path: self.blobs[etag] for path, etag in repo.commits[repo.commit_of(revision)].items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _serve(self):
        url = urlsplit(self.path)
        method = "GET" if self.command == "HEAD" else self.command
        self.body, self.query = self._read_body(), parse_qs(url.query)
        self.server.requests.append((self.command, unquote(url.path)))
        try:
            self.user = self._authenticate()
            for route_method, pattern, name in ROUTES:
                match = pattern.match(url.path)
                if match and route_method == method:
                    with self.server.lock:
                        answer = getattr(self, name)(*map(unquote, match.groups()))
                    return self._answer(*answer) if isinstance(answer, tuple) else self._answer_json(200, answer)
            raise HubError(404, f"no such page {url.path}")
        except HubError as error:
            headers = {"X-Error-Message": str(error)}
            if error.code:
                headers["X-Error-Code"] = error.code
            if getattr(error, "commit", None):
                headers["X-Repo-Commit"] = error.commit
            self._answer_json(error.status, {"error": str(error), **getattr(error, "content", {})}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _authenticate(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.server.tokens.get(token)

    def _answer_json(self, status, content, headers=None):
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status, body, headers, sent=None):
        """Send; `sent` bytes of the body only where the line is to break."""
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        if sent is not None:
            self.close_connection = True

    def _json(self):
        return json.loads(self.body or b"{}")

    def _repo(self, repo_id, write=False):
        repo = self.server.repos.get(repo_id)
        owner = repo_id.split("/")[0] == self.user
        if repo is None or (repo.private and not owner):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and not owner:
            raise HubError(403 if self.user else 401, f"{self.user} may not write to {repo_id}")
        return repo

    # What is asked for

    def whoami(self):
        if not self.user:
            raise HubError(401, "Invalid username or password.")
        return {"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def create_repo(self):
        if not self.user:
            raise HubError(401, "Invalid username or password.")
        asked = self._json()
        owner = asked.get("organization") or self.user
        if owner != self.user:
            raise HubError(403, f"{self.user} may not make repos of {owner}")
        repo_id = f"{owner}/{asked['name']}"
        content = {"url": f"{self.server.url}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repos:
            error = HubError(409, "You already created this model repo")
            error.content = content
            raise error
        self.server.repos[repo_id] = Repo(asked.get("visibility") == "private" or asked.get("private") is True)
        return content

    def validate_yaml(self):
        return {"errors": [], "warnings": []}

    def preupload(self, repo_id, revision):
        repo = self._repo(repo_id, write=not self.query.get("create_pr"))
        files = repo.commits[repo.commit_of(revision)]
        modes = {True: "lfs", False: "regular"}
        paths = [file["path"] for file in self._json()["files"]]
        return {
            "files": [
                {
                    "path": path,
                    "uploadMode": modes[path.endswith(LFS_SUFFIXES)],
                    "shouldIgnore": False,
                    "oid": files.get(path),
                }
                for path in paths
            ]
        }

    def lfs_batch(self, repo_id):
        self._repo(repo_id)
        objects = [{"oid": each["oid"], "size": each["size"]} for each in self._json()["objects"]]
        for each in objects:
            if each["oid"] not in self.server.blobs:
                each["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "the content is not what its hash says")
        self.server.blobs[oid] = self.body
        return {}

    def commit(self, repo_id, revision):
        create_pr = bool(self.query.get("create_pr"))
        repo = self._repo(repo_id, write=not create_pr)
        files, message = dict(repo.commits[repo.commit_of(revision)]), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                content = base64.b64decode(value["content"])
                etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                self.server.blobs[etag] = content
                files[value["path"]] = etag
            elif item["key"] == "lfsFile":
                files[value["path"]] = value["oid"]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        pull = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
        oid = repo.add(f"refs/pr/{pull}" if create_pr else revision, files, message)
        url = f"{self.server.url}/{repo_id}"
        return {
            "commitUrl": f"{url}/commit/{oid}",
            "commitOid": oid,
            "pullRequestUrl": f"{url}/discussions/{pull}" if create_pr else None,
        }

    def create_branch(self, repo_id, branch):
        repo = self._repo(repo_id, write=True)
        if branch in repo.refs:
            raise HubError(409, f"Reference already exists: {branch}")
        repo.refs[branch] = repo.commit_of(self._json().get("startingPoint", "main"))
        return {}

    def refs(self, repo_id):
        refs = self._repo(repo_id).refs.items()
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in refs]
        return {"branches": branches, "converts": [], "tags": []}

    def info(self, repo_id, revision="main"):
        repo = self._repo(repo_id)
        oid = repo.commit_of(revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[oid])]
        return {"id": repo_id, "modelId": repo_id, "sha": oid, "private": repo.private, "siblings": siblings}

    def tree(self, repo_id, revision):
        repo = self._repo(repo_id)
        entries = []
        for path, etag in sorted(repo.commits[repo.commit_of(revision)].items()):
            entry = {"type": "file", "path": path, "oid": etag, "size": len(self.server.blobs[etag])}
            if len(etag) == 64:
                entry["lfs"] = {"oid": etag, "size": entry["size"], "pointerSize": 134}
            entries.append(entry)
        return 200, json.dumps(entries).encode(), {"Content-Type": "application/json"}

    def resolve(self, repo_id, revision, path):
        repo = self._repo(repo_id)
        oid = repo.commit_of(revision)
        etag = repo.commits[oid].get(path)
        if etag is None:
            error = HubError(404, f"Entry not found: {path}", "EntryNotFound")
            error.commit = oid
            raise error
        content = self.server.blobs[etag]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if etag in self.server.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, size = 200, len(content)
        if match := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or size - 1)
            self.server.ranges.append((path, first))
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{min(last, size - 1)}/{size}"
        if self.command == "GET" and path in self.server.cut:
            self.server.cut.remove(path)
            return status, content, headers, len(content) // 2
        return status, content, headers
