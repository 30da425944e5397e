"""A wandb server on 127.0.0.1, as far as a run needs one, that can hang, fail or die when it is told to."""

import gzip
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

KEY = "0123456789" * 4  # well formed, and nobody's


class Server:
    """What it was told, and how it behaves.

    behaviour: "works", "hangs" (accepts and never answers), "fails" (500 to everything) or "dies" (closes
    connections without an answer). afterwards: the behaviour after it has made a run known.
    """

    def __init__(self, behaviour: str = "works", *, afterwards: str | None = None) -> None:
        self.behaviour = behaviour
        self.afterwards = afterwards
        self.requests: list[str] = []  # operations and paths, in order
        self.runs: dict[str, dict[str, Any]] = {}  # id -> what UpsertBucket said last
        self.history: dict[str, dict[int, dict[str, Any]]] = {}  # id -> offset -> line
        self.exit_codes: dict[str, int] = {}
        self.files: dict[str, bytes] = {}
        self.released = threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                self._answer(handler)

            do_GET = do_PUT = do_CONNECT = do_POST

            def log_message(handler, *given: Any) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(server, *given: Any) -> None:
                """A client that has gone is no error of the server."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        if handler.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        operation = handler.path
        if handler.path == "/graphql":
            found = re.search(rb"(?:query|mutation)\s+(\w+)", body)
            assert found is not None
            operation = found.group(1).decode()
        self.requests.append(operation)
        behaviour = self.behaviour
        if operation == "UpsertBucket" and self.afterwards:
            self.behaviour = self.afterwards
        if behaviour == "hangs":
            self.released.wait()
        if behaviour in ("hangs", "dies"):
            handler.close_connection = True
            return
        answer: dict[str, Any] = {}
        if behaviour == "works":
            if handler.path == "/graphql":
                answer = {"data": self._graphql(operation, json.loads(body).get("variables") or {})}
            elif handler.path.endswith("/file_stream"):
                self._stream(handler.path.split("/")[-2], json.loads(body))
            else:
                self.files[handler.path.removeprefix("/up/")] = body
        payload = json.dumps(answer).encode()
        handler.send_response(200 if behaviour == "works" else 500)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)

    def _graphql(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        entity = {"id": "e", "name": "me"}
        project = {"id": "p", "name": "attractor", "entity": entity}
        match operation:
            case "RunResumeStatus":
                known = self._bucket(given["name"]) if given["name"] in self.runs else None
                return {"model": project | {"bucket": known}}
            case "UpsertBucket":
                told = {name: value for name, value in given.items() if value is not None}
                self.runs.setdefault(given["name"], {}).update(told)
                bucket = self._bucket(given["name"]) | {"project": project, "sweepName": ""}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "Viewer":
                viewer = {"id": "v", "entity": "me", "username": "me", "email": "", "flags": "{}"}
                return {"viewer": viewer | {"teams": {"edges": []}}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/up/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                sequence = {"id": "s", "latestArtifact": None}
                artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}
                return {"createArtifact": {"artifact": artifact}}
            case "ArtifactType":
                return {"project": None}
        return {}

    def _bucket(self, run: str) -> dict[str, Any]:
        lines = self.history.get(run, {})
        last = max(lines, default=None)
        return {
            "id": f"id-{run}",
            "name": run,
            "displayName": self.runs[run].get("displayName"),
            "description": "",
            "config": self.runs[run].get("config", "{}"),
            "summaryMetrics": json.dumps({} if last is None else lines[last]),
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([] if last is None else [json.dumps(lines[last])]),
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _stream(self, run: str, told: dict[str, Any]) -> None:
        part = (told.get("files") or {}).get("wandb-history.jsonl")
        if part:
            lines = self.history.setdefault(run, {})
            for offset, line in enumerate(part["content"], start=part["offset"]):
                lines[offset] = json.loads(line)
        if told.get("complete"):
            self.exit_codes[run] = told["exitcode"]

    @property
    def environment(self) -> dict[str, str]:
        """For a run that is to find this server, and to be seen if it looks for any other one."""
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), self.url)
        found = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}
        return found | proxies | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}

    @property
    def elsewhere(self) -> list[str]:
        """Requests that were meant for another server, and came here as to a proxy."""
        return [request for request in self.requests if "://" in request or re.search(r":\d+$", request)]

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()
