"""A server that speaks the part of Google Cloud Storage's JSON API that TensorStore uses.

Objects are kept in memory. TensorStore talks to it where `TENSORSTORE_GCS_HTTP_URL` names it
(https://cloud.google.com/storage/docs/json_api/v1/objects).
"""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import re
import socketserver
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import NamedTuple

_PAGE_OBJECTS = 20


class StoredObject(NamedTuple):
  """An object of a bucket."""

  content: bytes
  generation: int


class Storage:
  """Buckets and their objects; tests look at `buckets` and `objects` and may change them."""

  def __init__(self):
    self.buckets: set[str] = set()
    self.objects: dict[tuple[str, str], StoredObject] = {}
    self.lock = threading.RLock()
    self.requests: list[str] = []
    # Returns an HTTP status that a request is answered with, or None; sees method and address.
    self.refuse: Callable[[str, str], int | None] = lambda method, address: None
    # Sees what a request for an object asks for of it.
    self.saw_range: Callable[[str], None] = lambda text: None
    self._generation = 1000

  def put(self, bucket: str, name: str, content: bytes) -> StoredObject:
    """Stores an object as a new generation."""
    with self.lock:
      self._generation += 1
      self.objects[bucket, name] = StoredObject(content, self._generation)
      return self.objects[bucket, name]

  def read(self, bucket: str, name: str) -> bytes:
    """Returns the content of an object."""
    return self.objects[bucket, name].content

  def names(self, bucket: str, prefix: str = "") -> list[str]:
    """Returns the names of the objects of a bucket in order."""
    with self.lock:
      return sorted(name for at, name in self.objects if at == bucket and name.startswith(prefix))


class Bucket(NamedTuple):
  """One bucket of a server.

  Attributes:
    storage: storage of the server.
    name: name of the bucket.
  """

  storage: Storage
  name: str

  @property
  def url(self) -> str:
    """Address of the bucket."""
    return f"gs://{self.name}"

  def put(self, name: str, content: bytes) -> None:
    """Stores an object."""
    self.storage.put(self.name, name, content)

  def upload(self, folder: pathlib.Path, name: str) -> None:
    """Stores the files of a folder."""
    for path in folder.rglob("*"):
      if path.is_file():
        self.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())

  def download(self, name: str, folder: pathlib.Path) -> None:
    """Writes the objects of a folder to files."""
    for one in self.names(f"{name}/"):
      path = folder / one.removeprefix(f"{name}/")
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(self.read(one))

  def read(self, name: str) -> bytes:
    """Returns the content of an object."""
    return self.storage.read(self.name, name)

  def names(self, prefix: str = "") -> list[str]:
    """Returns the names of the objects in order."""
    return self.storage.names(self.name, prefix)

  def remove(self, name: str) -> None:
    """Removes an object."""
    with self.storage.lock:
      del self.storage.objects[self.name, name]

  def refuse(self, status: int, method: str = "", part: str = "") -> None:
    """Answers requests of a method, for addresses that hold some text, by a status."""

    def refused(asked: str, path: str) -> int | None:
      here = f"/b/{self.name}/" in path and part in path
      return status if here and asked.startswith(method) else None

    self.storage.refuse = refused


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  storage: Storage
  # Otherwise the answer's second segment waits for the acknowledgment of the first.
  disable_nagle_algorithm = True
  wbufsize = -1

  def log_message(self, *unused) -> None:
    """Logs nothing."""

  def do_GET(self) -> None:
    """Lists a bucket, or answers with an object or its description."""
    storage = self.storage
    path, query = self._path()
    if self._is_refused("GET", path):
      return
    bucket, name = self._object(path)
    if name is None:
      prefix, after = query.get("prefix", ""), query.get("pageToken", "")
      start, end = query.get("startOffset", ""), query.get("endOffset", "")
      names = [
        one
        for one in storage.names(bucket, prefix)
        if one >= start and (not end or one < end) and one > after
      ]
      answer = {"items": [self._described(bucket, one) for one in names[:_PAGE_OBJECTS]]}
      if len(names) > _PAGE_OBJECTS:
        answer["nextPageToken"] = names[_PAGE_OBJECTS - 1]
      self._answer_json(answer)
      return
    found = storage.objects.get((bucket, name))
    if found is None:
      self._answer(404, b"{}")
    elif query.get("ifGenerationNotMatch") == str(found.generation):
      self._answer(304, b"")
    elif query.get("ifGenerationMatch") not in (None, str(found.generation)):
      self._answer(412, b"{}")
    elif query.get("alt") != "media":
      self._answer_json(self._described(bucket, name))
    else:
      self._answer_content(found)

  def do_POST(self) -> None:
    """Stores an object."""
    length = int(self.headers.get("Content-Length", 0))
    content = self.rfile.read(length)
    path, query = self._path()
    if self._is_refused("POST", path):
      return
    bucket, name = self._object(path)[0], query["name"]
    if query.get("uploadType") != "media":
      self._answer(501, b"{}")
      return
    with self.storage.lock:
      found = self.storage.objects.get((bucket, name))
      wanted = query.get("ifGenerationMatch")
      if wanted is not None and int(wanted) != (found.generation if found else 0):
        self._answer(412, b"{}")
        return
      self.storage.put(bucket, name, content)
      description = self._described(bucket, name)
    self._answer_json(description)

  def do_DELETE(self) -> None:
    """Removes an object."""
    path, query = self._path()
    if self._is_refused("DELETE", path):
      return
    bucket, name = self._object(path)
    with self.storage.lock:
      found = self.storage.objects.get((bucket, name))
      wanted = query.get("ifGenerationMatch")
      if found is None:
        self._answer(404, b"{}")
      elif wanted not in (None, str(found.generation)):
        self._answer(412, b"{}")
      else:
        del self.storage.objects[bucket, name]
        self._answer(204, b"")

  def _path(self) -> tuple[str, dict[str, str]]:
    parts = urllib.parse.urlsplit(self.path)
    self.storage.requests.append(f"{self.command} {self.path}")
    return parts.path, dict(urllib.parse.parse_qsl(parts.query))

  def _object(self, path: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", path)
    bucket, name = match.groups()
    return bucket, None if name is None else urllib.parse.unquote(name)

  def _is_refused(self, method: str, path: str) -> bool:
    status = self.storage.refuse(method, urllib.parse.unquote(self.path))
    if not status and self._object(path)[0] not in self.storage.buckets:
      status = 404
    if status:
      self._answer(status, b"{}")
    return bool(status)

  def _described(self, bucket: str, name: str) -> dict[str, str]:
    found = self.storage.objects[bucket, name]
    digest = base64.b64encode(hashlib.md5(found.content).digest()).decode()
    return {
      "kind": "storage#object",
      "bucket": bucket,
      "name": name,
      "size": str(len(found.content)),
      "generation": str(found.generation),
      "metageneration": "1",
      "md5Hash": digest,
      "updated": "2026-01-01T00:00:00.000Z",
      "timeCreated": "2026-01-01T00:00:00.000Z",
    }

  def _answer_content(self, found: StoredObject) -> None:
    content, status, headers = found.content, 200, {}
    self.storage.saw_range(self.headers.get("Range", "bytes=0-"))
    if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
      size = len(content)
      first, last = match.groups()
      start = int(first) if first else max(0, size - int(last))
      stop = min(int(last) + 1, size) if first and last else size
      if start >= size:
        self._answer(416, b"{}", {"Content-Range": f"bytes */{size}"})
        return
      content, status = content[start:stop], 206
      headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    self._answer(status, content, headers | {"X-Goog-Generation": str(found.generation)})

  def _answer_json(self, value: dict) -> None:
    self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

  def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    if status not in (204, 304):
      self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)
    self.wfile.flush()


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
  daemon_threads = True
  request_queue_size = 128


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, Storage]]:
  """Starts a server on a free port; yields its address and its storage."""
  storage = Storage()
  handler = type("Handler", (_Handler,), {"storage": storage})
  with _Server(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
      yield f"http://127.0.0.1:{server.server_port}", storage
    finally:
      server.shutdown()
      thread.join()


def environment(address: str) -> dict[str, str]:
  """Returns the variables that make a process use the server at an address."""
  return {"TENSORSTORE_GCS_HTTP_URL": address, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token"}


if __name__ == "__main__":
  with serving() as (address, storage):
    storage.buckets.update(sys.argv[1:])
    print(address, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
      threading.Event().wait()
    os._exit(0)
