"""The viewer's server: who may ask, and what is served to no one."""

import socket

import pytest

import mre_lowshot
from mre_lowshot.viewer.access import Access
from mre_lowshot.viewer.server import PAGES
from mre_lowshot.workflows.view import view
from tests.conftest import command
from tests.viewer_folders import ask, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def running(folder):
    with view(folder, reference=folder.parent / "references") as made:
        yield made


@pytest.mark.parametrize("token", ["", "x", "x" * 32, "%00", "%c3%a9"])
@pytest.mark.parametrize("path", ["", "cases.json", "0/scan-0.nii", "main.js", "niivue/LICENSE.txt"])
def test_nothing_is_served_without_the_token(running, token, path):
    status, _, content = ask(running, f"/{token}/{path}", raw=True)
    assert (status, content) == (403, b"wrong token: open the address that mre_view prints\n")


def test_the_token_is_random_long_and_not_in_any_other_place(running, folder):
    token = running.url.split("/")[3]
    assert len(token) >= 32
    assert Access().token != Access().token
    assert ask(running, token=token[:-1])[0] == ask(running, token=token + "a")[0] == 403
    assert ask(running, f"/?token={token}", raw=True)[0] == 403
    assert ask(running, f"/{token}", raw=True)[0] == 403  # without the slash the page's addresses would lose it


def test_the_ticket_leads_to_the_page_once(folder):
    with view(folder) as made:
        path = "/" + made.ticket_url.split("/")[3]
        assert ask(made, path, raw=True, method="HEAD")[0] == 403  # does not use it up
        status, headers, _ = ask(made, path, raw=True)
        assert (status, f"http://127.0.0.1:{made.port}{headers['Location']}") == (303, made.url)
        assert ask(made, path, raw=True)[0] == ask(made, "/", raw=True)[0] == 403


@pytest.mark.parametrize("host", ["", "evil.example", "evil.example:{}", "127.0.0.1", "127.0.0.1:1", "[::1]:{}"])
def test_a_request_for_another_host_is_refused(running, host):
    assert ask(running, host=host.format(running.port))[::2] == (403, b"wrong host\n")
    assert ask(running, host=f"localhost:{running.port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_only_reading_is_possible(running, method):
    status, headers, _ = ask(running, "cases.json", method=method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_gives_the_size_alone(running):
    status, headers, content = ask(running, "cases.json", method="HEAD")
    assert (status, content) == (200, b"")
    assert int(headers["Content-Length"]) == len(ask(running, "cases.json")[2])


def test_only_the_local_address_is_bound(running):
    assert running._server.server_address[0] == "127.0.0.1"
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex(("127.0.0.2", running.port)) != 0


def test_the_page_may_load_from_its_own_server_only(running):
    for path in ("", "main.js", "cases.json", "0/scan-0.nii", "missing"):
        _, headers, _ = ask(running, path)
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert set(policy["connect-src"].split()) == {"'self'", "data:", "blob:"}
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "../cases.json", "%2e%2e/%2e%2e/pyproject.toml", "..%2fviewer/server.py", "/etc/passwd", "//etc/passwd",
        "etc/passwd", "run.json", "quality.csv", "bad.nii.gz", "__init__.py", "server.py", "niivue/../main.js",
        "niivue/%2e%2e/main.js", "niivue/README.md", "main.js%00", "main.js/", "0", "0/", "0/../cases.json",
        "0/bad.nii.gz", "0/run.json", "0/scan-0.nii.gz", "0/scan-9.nii", "-1/info.json", "9/info.json",
        "%d9%a3/info.json", "1e3/info.json", "0x1/info.json", "99999999999999/info.json", "0/scan-0",
        "file:///etc/passwd", "C:\\x",
    ],
)  # fmt: skip
def test_no_other_address_leads_anywhere(running, path):
    assert ask(running, path)[::2] == (404, b"nothing here\n")


def test_every_page_is_there(running):
    for name, kind in PAGES.items():
        status, headers, content = ask(running, name)
        assert (status, headers["Content-Type"]) == (200, kind)
        assert content
    assert ask(running)[2] == ask(running, "index.html")[2]
    assert b"niivue.umd.js" in ask(running)[2]


def test_the_server_ends(folder):
    with mre_lowshot.view(folder) as made:
        port = made.port
    made.close()
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.1", port)) != 0
    assert not made._thread.is_alive()


def test_the_command_prints_the_address_and_ends_with_ctrl_c(folder, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("mre_lowshot.cli.view.webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")

    def interrupted(self):
        assert ask(self)[0] == 200
        raise KeyboardInterrupt

    monkeypatch.setattr("mre_lowshot.viewer.server.Viewer.wait", interrupted)
    assert command("view", folder) == 130
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"4 cases of {folder}; end with Ctrl-C"
    assert out.splitlines()[1].startswith("http://127.0.0.1:")
    assert err == "interrupted\n"
    assert len(opened) == 1
    assert opened[0].split("/")[3] != out.splitlines()[1].split("/")[3]  # other users can see it
    assert command("view", folder, "--no_browser") == 130
    assert len(opened) == 1
    assert command("view", folder / "missing") == 2
    assert "does not exist" in capsys.readouterr().err
