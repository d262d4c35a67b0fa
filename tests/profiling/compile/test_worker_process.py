import json

import pytest

from nfnet.errors import UserError
from profiling.compile.worker_process import DeviceMemoryError, run_worker_process

ECHO = "tests.profiling.compile.echo_worker"


def run(request, folder, *, dumps=False, **limits):
  run_worker_process(ECHO, request, folder, what="compiling X", dumps=dumps, **limits)
  return json.loads((folder / "result.json").read_text())


def test_memory_is_measured(tmp_path):
  result = run({"allocate_bytes": 10**8, "sleep_seconds": 0.5}, tmp_path)
  assert 10**8 < result["peak_memory_bytes"] < 3 * 10**8


def test_jax_settings_are_not_inherited(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_ENABLE_X64", "1")
  assert run({}, tmp_path)["settings"] == {"JAX_PLATFORMS": "cpu"}


def test_dumps_are_not_kept(tmp_path):
  run({}, tmp_path, dumps=True)
  assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "request.json", "result.json"}


@pytest.mark.parametrize(
  ("request_", "limits", "message"),
  [
    ({"error": "no such slice"}, {}, "compiling X: no such slice"),
    ({"error": "RESOURCE_EXHAUSTED: hbm"}, {}, "compiling X: RESOURCE_EXHAUSTED: hbm"),
    (
      {"print": "first\nlast", "exit_code": 3},
      {},
      "compiling X: the compiling process ended with code 3: last",
    ),
    (
      {"allocate_bytes": 10**8, "sleep_seconds": 60},
      {"memory_limit_bytes": 5 * 10**7},
      "compiling X: the compiler wanted more than 0.05 GB of memory; raise --memory_limit_gb",
    ),
    (
      {"sleep_seconds": 60},
      {"time_limit_seconds": 0.5},
      "compiling X: the compiler took more than 0.5 seconds; raise --time_limit_seconds",
    ),
  ],
  ids=["error", "device memory", "exit code", "memory", "time"],
)
def test_what_goes_wrong_is_one_line(request_, limits, message, tmp_path):
  with pytest.raises(UserError) as error:
    run(request_, tmp_path, **limits)
  assert str(error.value) == message
  assert isinstance(error.value, DeviceMemoryError) == ("RESOURCE_EXHAUSTED" in message)
