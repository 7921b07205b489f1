"""A Hugging Face hub only on this machine, as far as a push of a small folder needs one."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """What the hub holds. repositories: name → whether it is private, and its files. tokens: all
    that it was shown."""

    endpoint: str = ""
    repositories: dict[str, dict] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuses: bool = False


@contextmanager
def receiving_hub() -> Iterator[Hub]:
    """A hub at an address of its own, until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, document: object, status: int = 200, **headers: str) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def missing(self) -> None:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

        def do_GET(self) -> None:
            hub.tokens.add(self.headers.get("Authorization", ""))
            name = "/".join(self.path.split("/")[3:5])
            if name not in hub.repositories:
                return self.missing()
            self.answer({"id": name, "siblings": [], "private": True, "sha": "0" * 40})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("Authorization", ""))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hub.refuses:
                return self.answer({"error": "your token may not write"}, 403)
            if self.path == "/api/repos/create":
                given = json.loads(body)
                name = "/".join(filter(None, (given.get("organization"), given["name"])))
                hub.repositories[name] = {"asked": given, "files": {}}
                return self.answer({"url": f"{hub.endpoint}/{name}", "id": name})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            name = "/".join(self.path.split("/")[3:5])
            if "/preupload/" in self.path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.repositories[name]["files"][line["value"]["path"]] = content
                commit = {"commitUrl": f"{hub.endpoint}/{name}/commit/1", "commitOid": "1" * 40}
                return self.answer({**commit, "success": True})
            self.missing()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
