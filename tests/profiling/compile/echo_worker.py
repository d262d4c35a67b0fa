"""A worker that compiles nothing: it does what its request says, and returns it.

Its request may have "sleep_seconds", "allocate_bytes", "exit_code" after "print", or "error".
"""

import json
import os
import pathlib
import sys
import time


def main(request_path, folder):
  request = json.loads(pathlib.Path(request_path).read_text())
  out = pathlib.Path(folder)
  held = bytearray(request.get("allocate_bytes", 0))
  print(request.get("print", ""), flush=True)
  time.sleep(request.get("sleep_seconds", 0))
  if "exit_code" in request:
    sys.exit(request["exit_code"])
  if "error" in request:
    (out / "error.txt").write_text(request["error"])
    return
  settings = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
  result = {
    "request": request,
    "process": os.getpid(),
    "held_bytes": len(held),
    "settings": settings,
  }
  (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
  main(*sys.argv[1:])
