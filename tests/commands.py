"""Runs commands of the project as a person does, but without the seconds that imports take.

Each command is a process of its own: a fork of one that has imported what the commands import from
other packages, and nothing of the project. That process has no threads and has not asked JAX for
devices, so it may be forked.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile

from tests.repository import ROOT

SECONDS_MAX = 600
_IMPORTED = (
  *("absl.app", "absl.logging", "numpy", "tqdm", "jax", "jax.numpy", "jax.experimental.pallas.tpu"),
  *(
    "jax.experimental.multihost_utils",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "scipy.optimize",
  ),
  *("matplotlib.figure", "matplotlib.ticker", "matplotlib.backends.backend_agg", "tensorboardX"),
  *("array_record.python.array_record_module", "PIL.Image"),
)


def run(module, *arguments, folder=ROOT, environment=None, stdout=None):
  """Runs `python -m MODULE ARGUMENTS...` under this process's umask, and waits for its end.

  Args:
    module: name of the module.
    *arguments: what follows it on the command line; `str` makes text of them.
    folder: where the command runs.
    environment: variables in addition to those of this process, but none that JAX reads when it is
      imported.
    stdout: descriptor of a file that takes the output; by default it is returned.

  Returns:
    A `subprocess.CompletedProcess` with text.
  """
  request = _request_of(module, arguments, folder, environment or {})
  with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
    sinks = [output.fileno() if stdout is None else stdout, errors.fileno()]
    return_code = _server().run(request, sinks)
    texts = [_content(file) for file in (output, errors)]
  return subprocess.CompletedProcess([module, *request["arguments"]], return_code, *texts)


def start(module, *arguments, log, environment, session=False):
  """Starts `python -m MODULE ARGUMENTS...` in the root of the repository, and does not wait.

  Args:
    module: name of the module.
    *arguments: what follows it on the command line; `str` makes text of them.
    log: file object that takes both outputs.
    environment: as for `run`.
    session: whether the process leads a session, as a shell's jobs do.

  Returns:
    A `Started`.
  """
  request = {**_request_of(module, arguments, ROOT, environment), "session": session}
  reader, writer = os.pipe()
  _server().send(request, [log.fileno(), log.fileno(), writer])
  os.close(writer)
  return Started(reader)


def _request_of(module, arguments, folder, environment):
  return {
    "module": module,
    "arguments": [str(argument) for argument in arguments],
    "folder": str(folder),
    "environment": {**os.environ, **environment},
    "umask": _umask(),
  }


class Started:
  """A process that `start` has started: what tests need of a `subprocess.Popen`.

  Attributes:
    pid: its id.
    returncode: as that of a `subprocess.Popen`.
  """

  def __init__(self, reader):
    self._report = open(reader, "rb", buffering=0)  # noqa: SIM115
    self.pid = int(self._report.readline())
    self.returncode = None

  def poll(self):
    """Returns the exit code, or None while the process runs."""
    if self.returncode is None and select.select([self._report], [], [], 0)[0]:
      self._read()
    return self.returncode

  def wait(self, timeout=None):
    """Returns the exit code once there is one."""
    if self.returncode is None:
      if not select.select([self._report], [], [], timeout)[0]:
        raise subprocess.TimeoutExpired(str(self.pid), timeout)
      self._read()
    return self.returncode

  def send_signal(self, number):
    """Sends a signal, unless the process has ended."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self):
    """Sends SIGKILL."""
    self.send_signal(signal.SIGKILL)

  def _read(self):
    self.returncode = int(self._report.readline())
    self._report.close()


_PYTHON = """#!{python} -ES
import json, os, socket, sys
if len(sys.argv) < 3 or sys.argv[1] != "-m":
  os.execv({python!r}, [{python!r}, *sys.argv[1:]])
umask = os.umask(0)
os.umask(umask)
request = dict(
  module=sys.argv[2], arguments=sys.argv[3:], folder=os.getcwd(), environment=dict(os.environ),
  umask=umask,
)
server = socket.socket(fileno={connection})
server.settimeout({seconds_max})
socket.send_fds(server, [json.dumps(request).encode()], [1, 2])
code = int(server.recv(100))
sys.exit(code if code >= 0 else 128 - code)
"""


def write_python(folder):
  """Writes a program `python` whose `-m MODULE` is a fork, for shells that run many commands.

  Args:
    folder: folder of the program.

  Returns:
    The descriptor that a shell has to inherit, under the same number.
  """
  connection = _server().descriptor
  path = folder / "python"
  path.write_text(
    _PYTHON.format(python=sys.executable, connection=connection, seconds_max=SECONDS_MAX)
  )
  path.chmod(0o755)
  return connection


class _Server:
  def __init__(self):
    self._of_jax = _of_jax(os.environ)
    self._connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    self._connection.settimeout(SECONDS_MAX)
    with other:
      self._process = subprocess.Popen(
        [sys.executable, "-m", "tests.commands", str(other.fileno())],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        pass_fds=[other.fileno()],
        start_new_session=True,
      )
    atexit.register(self._end)

  @property
  def descriptor(self):
    """Returns the descriptor of the socket that takes requests."""
    return self._connection.fileno()

  def _end(self):
    self._connection.close()
    self._process.wait()

  def send(self, request, sinks):
    assert _of_jax(request["environment"]) == self._of_jax, "JAX has been imported already"
    socket.send_fds(self._connection, [json.dumps(request).encode()], sinks)

  def run(self, request, sinks):
    self.send(request, sinks)
    try:
      return int(self._connection.recv(100))
    except TimeoutError:
      os.killpg(self._process.pid, signal.SIGKILL)
      _server.cache_clear()
      raise


@functools.cache
def _server():
  return _Server()


def _umask():
  # It cannot be read without being set.
  umask = os.umask(0)
  os.umask(umask)
  return umask


def _of_jax(environment):
  return {name: value for name, value in environment.items() if name.startswith("JAX_")}


def _content(file):
  file.seek(0)
  return file.read().decode()


def _serve(connection):
  """Forks for each request; returns, in the fork, what to run, and None at the end."""
  for name in _IMPORTED:
    importlib.import_module(name)
  gc.freeze()
  while True:
    message, sinks, _, _ = socket.recv_fds(connection, 2**18, 3)
    with contextlib.suppress(ChildProcessError):
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    if not message:
      return None
    report = sinks.pop() if len(sinks) == 3 else None
    child = os.fork()
    if not child and report is not None:
      connection.close()
      child = _fork_and_report(report, sinks)
      if json.loads(message)["session"]:
        os.setsid()
    if not child:
      for sink, number in zip(sinks, (1, 2), strict=True):
        os.dup2(sink, number)
      for sink in sinks:
        os.close(sink)
      connection.close()
      return json.loads(message)
    for sink in sinks:
      os.close(sink)
    if report is not None:
      os.close(report)
      continue
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
      connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _fork_and_report(report, sinks):
  """Returns 0 in a fork; the process itself reports its id and then its exit code, and ends."""
  child = os.fork()
  if not child:
    os.close(report)
    return 0
  for sink in sinks:
    os.close(sink)
  with contextlib.suppress(BrokenPipeError):
    os.write(report, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
  os._exit(0)


if __name__ == "__main__":
  _request = _serve(socket.socket(fileno=int(sys.argv[1])))
  if _request is not None:
    os.chdir(_request["folder"])
    os.umask(_request["umask"])
    os.environ.clear()
    os.environ.update(_request["environment"])
    # As `python -m` has it while it imports the package, see `nfnet.system.interrupts`.
    sys.argv = ["-m", *_request["arguments"]]
    runpy.run_module(_request["module"], run_name="__main__", alter_sys=True)
