"""Files that no hub holds: fetched once, whole or not at all, and never a page in their place."""

import http.server
import threading
from typing import ClassVar

import pytest

from tokzoo.errors import TokzooError
from tokzoo.hub.download import download_url

HELD = bytes(range(256)) * 20


class Handler(http.server.BaseHTTPRequestHandler):
  """/file.pth is a file, /short.pth breaks off, /page.pth is a page; the rest is not there."""

  asked: ClassVar[list[str]] = []

  def do_GET(self):
    self.asked.append(self.path)
    name = self.path.partition("?")[0]
    if name not in ("/file.pth", "/short.pth", "/page.pth"):
      self.send_error(404)
      return
    kind = "text/html" if name == "/page.pth" else "application/octet-stream"
    self.send_response(200)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(HELD)))
    self.end_headers()
    self.wfile.write(HELD[:1000] if name == "/short.pth" else HELD)

  def log_message(self, *_):
    pass


@pytest.fixture
def site(tmp_path, monkeypatch):
  monkeypatch.setenv("TOKZOO_CACHE", str(tmp_path))
  monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
  Handler.asked.clear()
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{server.server_port}"
  server.shutdown()
  server.server_close()


def test_once(site, monkeypatch):
  url = f"{site}/file.pth?key=1&dl=1"
  path = download_url(url)
  assert path.name == "file.pth" and path.read_bytes() == HELD
  assert download_url(url) == path and len(Handler.asked) == 1
  # An address without a name says it after a #, which the server never hears of.
  named = download_url(f"{site}/file.pth?key=4#own.pt")
  assert named.name == "own.pt" and Handler.asked[-1] == "/file.pth?key=4"
  # Another address of the same name is another file.
  assert download_url(f"{site}/file.pth?key=2&dl=1") != path
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  assert download_url(url) == path
  with pytest.raises(TokzooError, match="HF_HUB_OFFLINE is set"):
    download_url(f"{site}/file.pth?key=3")


def test_another_hash(site):
  with pytest.raises(TokzooError, match="has SHA-256"):
    download_url(f"{site}/file.pth", sha256="0" * 64)


@pytest.mark.parametrize(
  "name, said",
  [
    ("page.pth", "gives a page, not a file"),
    ("short.pth", "could not be fetched"),
    ("none.pth", "could not be fetched .*404"),
  ],
)
def test_nothing_is_kept(site, tmp_path, name, said):
  with pytest.raises(TokzooError, match=said) as caught:
    download_url(f"{site}/{name}")
  assert "\n" not in str(caught.value)
  assert not [path for path in tmp_path.rglob("*") if path.is_file()]
