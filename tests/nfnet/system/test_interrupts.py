import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.repository import ROOT


@pytest.fixture
def in_the_foreground():
  """Undoes that tests in the background of a script, and what they start, ignore SIGINT."""
  previous = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize("command", ["train.pretrain", "nfnet.predict"])
def test_ctrl_c_while_a_command_imports_its_modules_is_one_line(command):
  process = subprocess.Popen(
    [sys.executable, "-m", command, "--help"],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  # JAX and others come after it.
  while "numpy" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
    time.sleep(0.001)
  process.send_signal(signal.SIGINT)
  assert process.communicate(timeout=60)[1] == "interrupted\n"
  assert process.returncode == 130
