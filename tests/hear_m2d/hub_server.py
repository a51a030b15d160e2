"""A small hub in the place of the Hugging Face one: `python hub_server.py FOLDER` prints its address.

It speaks what huggingface_hub needs to create a repository, commit to it (through plain LFS), list it and
fetch its files. Each commit is a folder `FOLDER/owner/repo/COMMIT`; `FOLDER/requests.log` has a line per
request. Repositories whose name begins with `gated` or `broken` answer 403 and 500. To write takes a token.
"""

import base64
import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def do_HEAD(self):
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815

    def log_message(self, *_):
        pass

    def answer(self):
        self.path_only = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        with (self.root / "requests.log").open("a") as log:
            log.write(f"{self.command} {self.path_only}\n")
        for method, pattern, function in self.ROUTES:
            found = re.fullmatch(pattern, self.path_only)
            if found and self.command in method:
                return function(self, *found.groups())
        return self.error(404, "", f"no such page: {self.command} {self.path_only}")

    def reply(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def error(self, status, code, message, **headers):
        self.reply({"error": message}, status, X_Error_Code=code, X_Error_Message=message, **headers)

    def may_write(self):
        if self.headers.get("authorization") == f"Bearer {TOKEN}":
            return True
        self.error(401, "", "Invalid username or password.")
        return False

    def commit_folder(self, repo, revision):
        """The folder of a revision; None after an answer that says what is wrong."""
        name = repo.split("/")[1]
        if name.startswith("gated"):
            self.error(403, "GatedRepo", "Access to this model is restricted.")
        elif name.startswith("broken"):
            self.error(500, "", "the disk is on fire")
        elif not (self.root / repo / "refs.json").exists():
            self.error(404, "RepoNotFound", "Repository not found")
        else:
            refs = json.loads((self.root / repo / "refs.json").read_text())
            commit = refs.get(revision, revision)
            if (self.root / repo / commit).is_dir():
                return self.root / repo / commit
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def create(self):
        if self.may_write():
            wanted = json.loads(self.body)
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if not (self.root / repo / "refs.json").exists():
                self.new_commit(repo, "main", {})
            self.reply({"url": f"{self.address}/{repo}", "id": repo})

    def new_commit(self, repo, branch, files):
        digest = hashlib.sha1(
            repr([(name, hashlib.sha256(d).hexdigest()) for name, d in files.items()]).encode()
        )
        folder = self.root / repo / digest.hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        refs = self.root / repo / "refs.json"
        old = json.loads(refs.read_text()) if refs.exists() else {}
        refs.write_text(json.dumps({**old, branch: folder.name}))
        return folder.name

    def info(self, repo, revision="main"):
        if folder := self.commit_folder(repo, revision):
            siblings = [{"rfilename": name} for name in names(folder)]
            self.reply(
                {"id": repo, "modelId": repo, "sha": folder.name, "siblings": siblings, "private": False}
            )

    def tree(self, repo, revision, _):
        if folder := self.commit_folder(repo, revision):
            self.reply(
                [
                    {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": "0" * 40}
                    for name in names(folder)
                ]
            )

    def preupload(self, repo, revision):
        if self.may_write() and self.commit_folder(repo, revision):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".pth")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.reply({"files": files})

    def lfs_batch(self, repo):
        if self.may_write():
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.address}/lfs/{item['oid']}"}}}
                for item in json.loads(self.body)["objects"]
            ]
            self.reply({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.error(400, "", "another SHA-256 than promised")
        (self.root / "lfs").mkdir(exist_ok=True)
        (self.root / "lfs" / oid).write_bytes(self.body)
        return self.reply(b"")

    def commit(self, repo, revision):
        if not self.may_write() or not (folder := self.commit_folder(repo, revision)):
            return
        files = {name: (folder / name).read_bytes() for name in names(folder)}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = (self.root / "lfs" / value["oid"]).read_bytes()
        commit = self.new_commit(repo, revision, files)
        url = f"{self.address}/{repo}/commit/{commit}"
        self.reply({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def resolve(self, repo, revision, name):
        if not (folder := self.commit_folder(repo, revision)):
            return
        if not (folder / name).is_file():
            self.error(404, "EntryNotFound", "Entry not found", X_Repo_Commit=folder.name)
            return
        data = (folder / name).read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.reply(data, ETag=etag, X_Repo_Commit=folder.name)

    def validate(self):
        lines = json.loads(self.body)["content"].splitlines()
        ok = lines[0] == "---" and any(line.startswith("license: ") for line in lines)
        self.reply({"errors": [] if ok else [{"message": "no license"}], "warnings": []})

    @property
    def address(self):
        return "http://{}:{}".format(*self.server.server_address)

    ROUTES = (
        ("POST", "/api/repos/create", create),
        ("POST", "/api/validate-yaml", validate),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", preupload),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", commit),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(/.*)?", tree),
        ("GET", r"/api/models/([^/]+/[^/]+)/revision/(.+)", info),
        ("GET", r"/api/models/([^/]+/[^/]+)", info),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", lfs_batch),
        ("PUT", r"/lfs/([0-9a-f]{64})", lfs_put),
        ("HEAD GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
    )


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    Hub.root = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
