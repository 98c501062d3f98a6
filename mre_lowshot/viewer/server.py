"""The web server of a viewer: read-only, on the local address only, with a fixed list of addresses."""

from __future__ import annotations

import json
import logging
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

from mre_lowshot.errors import TRACEBACK, UserError
from mre_lowshot.files import printable
from mre_lowshot.viewer.access import HEADERS, HOST, Access, is_own_host
from mre_lowshot.viewer.cases import ViewerCase, find_cases, label_maps
from mre_lowshot.viewer.labels import find_labels
from mre_lowshot.viewer.volumes import VolumeCache

LOGGER = logging.getLogger("mre_lowshot")
# Address to content type: no other file of the package is served, and no other file at all is served by its name.
PAGES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "main.js": "text/javascript; charset=utf-8",
    "panel.js": "text/javascript; charset=utf-8",
    "niivue/niivue.umd.js": "text/javascript; charset=utf-8",
    "niivue/LICENSE.txt": "text/plain; charset=utf-8",
}
_NIFTI = "application/octet-stream"
_SECONDS = 60.0  # that a connection may be idle


class Viewer:
    """A running viewer; it ends with `close`, or at the end of a ``with`` block.

    Args:
        folder: of label maps.
        reference: folder of reference label maps.
        scans: folder of the scans.
        port: 0 for a free one.

    Attributes:
        url: of the page, with the token.
        cases: in the order of the list: the worst first.

    Raises:
        UserError: a folder is none, or holds nothing to show; the port is taken.
    """

    def __init__(
        self, folder: Path, *, reference: Path | None = None, scans: Path | None = None, port: int = 0
    ) -> None:
        self.folder = folder
        self.cases: tuple[ViewerCase, ...] = tuple(find_cases(folder, reference, scans))
        self._access = Access()
        table = find_labels(folder, list(label_maps(folder).values())[:1])
        folders = {"prediction": folder, "reference": reference or folder}
        self._answers = Answers(self.cases, VolumeCache(table, folders), folder)
        try:
            self._server = _Server(port, self._access, self._answers)
        except (OSError, OverflowError) as problem:
            reason = getattr(problem, "strerror", None) or str(problem)
            raise UserError(f"--port {port}: cannot be used ({reason}); give another, or 0 for a free one") from None
        self.port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address of the page, which holds the token."""
        return f"http://{HOST}:{self.port}/{self._access.token}/"

    @property
    def ticket_url(self) -> str:
        """An address that leads to the page once, for the command line of a browser."""
        return f"http://{HOST}:{self.port}/{self._access.ticket()}"

    def wait(self) -> None:
        """Wait until the viewer is closed, or the process is interrupted."""
        while self._thread.is_alive():
            self._thread.join(0.2)

    def close(self) -> None:
        """End the server. A second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Answers:
    """What a viewer answers to the part of an address that follows the token."""

    def __init__(self, cases: tuple[ViewerCase, ...], volumes: VolumeCache, folder: Path) -> None:
        self.cases, self.volumes, self.folder = cases, volumes, folder

    def answer(self, rest: str) -> tuple[str, bytes] | None:
        """Content type and content; None where there is nothing of that address."""
        name = rest or "index.html"
        if name in PAGES:
            return PAGES[name], files("mre_lowshot.viewer").joinpath("web", *name.split("/")).read_bytes()
        if name == "cases.json":
            return _as_json({"folder": printable(str(self.folder)), "cases": [_listed(case) for case in self.cases]})
        part, _, file = name.partition("/")
        number = int(part) if part.isascii() and part.isdigit() and len(part) < 7 else -1
        if not 0 <= number < len(self.cases):
            return None
        loaded = self.volumes.get(self.cases[number])
        if file == "info.json":
            return _as_json({**loaded.info, "files": sorted(loaded.files)})
        content = loaded.files.get(file.removesuffix(".nii")) if file.endswith(".nii") else None
        return (_NIFTI, content) if content is not None else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, access: Access, answers: Answers) -> None:
        self.access, self.answers = access, answers
        super().__init__((HOST, port), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone away is no error; anything else is logged."""
        LOGGER.debug("a request of the viewer ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mre_view", ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        self._respond(body=True)

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def _refuse_method(self) -> None:
        self.close_connection = True  # what it sends is not read
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"read only\n", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method

    def _respond(self, *, body: bool) -> None:
        access = self.server.access
        path = self.path.partition("?")[0]
        if not is_own_host(self.headers.get("Host"), self.server.port):
            return self._send(HTTPStatus.FORBIDDEN, "text/plain", b"wrong host\n", body=body)
        if body and access.redeem(path):
            return self._send(HTTPStatus.SEE_OTHER, "text/plain", b"", {"Location": f"/{access.token}/"})
        rest = access.rest(path)
        if rest is None:
            return self._send(
                HTTPStatus.FORBIDDEN, "text/plain", b"wrong token: open the address that mre_view prints\n", body=body
            )
        try:
            found = self.server.answers.answer(rest)
        except Exception as problem:
            LOGGER.warning("viewer: %s (%s=1 shows where)", problem, TRACEBACK)
            return self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"failed\n", body=body)
        if found is None:
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"nothing here\n", body=body)
        self._send(HTTPStatus.OK, *found, body=body)

    def _send(
        self,
        status: HTTPStatus,
        kind: str,
        content: bytes,
        more: dict[str, str] | None = None,
        *,
        body: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed: their addresses hold the token."""


def _as_json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode()


def _listed(case: ViewerCase) -> dict[str, Any]:
    return {
        "name": printable(case.name),
        "score": case.score,
        "basis": case.basis,
        "warnings": [printable(text) for text in case.warnings],
        "failed": case.failed,
    }
