"""Programs whose output is not read or cannot be written go on, and end silently."""

import io
import os
import pty
import subprocess
import sys
import time

import pytest

from nfnet.command_line import EXIT_LOST_OUTPUT, EXIT_USER_ERROR
from nfnet.system.standard_streams import LenientFile, is_output_lost
from tests.repository import ROOT

LINES = 20_000
# More than fits into a pipe, in the middle of it something that UTF-8 cannot express, and on both
# streams.
PRINTING = f"""
for i in range({LINES}):
  print("line", i)
  if i % 1000 == 0:
    print("error", i, "\\udcff", file=sys.stderr)
print("\\udcff", end="")
open(sys.argv[1], "w").write("done")
"""
STREAMS = f"""
import sys
from nfnet.system.standard_streams import keep_running_without_readers
streams = keep_running_without_readers()
{PRINTING}
streams.flush()
sys.exit(10 * (streams.error() is not None))
"""
COMMAND = """
import sys
from nfnet.command_line import run_main

def main(arguments):
  {body}

run_main(main, prints_result={prints_result})
"""


def shell(program, redirections, *arguments):
  """Runs a program with redirections and returns its exit code and all that it wrote."""
  line = f'"$0" -c "$1" "${{@:2}}" {redirections}; exit ${{PIPESTATUS[0]}}'
  return subprocess.run(
    ["bash", "-c", line, sys.executable, program, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    errors="replace",
    timeout=60,
    check=False,
  )


@pytest.mark.parametrize(
  ("redirections", "code"),
  [
    ("| true", 0),
    ("| head -n 1", 0),
    ("2>&1 | head -n 1", 0),
    ("> /dev/full", 10),
    ("> /dev/full 2>&1", 10),
    ("2> /dev/full", 0),
    (">&-", 0),
    ("2>&-", 0),
    ("<&- >&- 2>&-", 0),
    (">&- 2> /dev/full", 0),
  ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_program_goes_on(tmp_path, monkeypatch, redirections, code, unbuffered):
  monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
  result = shell(STREAMS, redirections, str(tmp_path / "marker"))
  assert (tmp_path / "marker").read_text() == "done"
  assert result.returncode == code
  assert "Traceback" not in result.stdout + result.stderr
  assert "ignored" not in result.stdout + result.stderr


def test_output_that_can_be_written_is_whole(tmp_path):
  result = shell(STREAMS, "| cat", str(tmp_path / "marker"))
  lines = result.stdout.splitlines()
  assert lines == [*(f"line {i}" for i in range(LINES)), "\\udcff"]
  assert [line for line in result.stderr.splitlines() if line] == [
    f"error {i} \\udcff" for i in range(0, LINES, 1000)
  ]


def test_a_stream_that_must_not_wait(tmp_path):
  """Some programs make the pipes that they share with others non-blocking."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  process = subprocess.Popen(
    [sys.executable, "-c", STREAMS, tmp_path / "marker"], cwd=ROOT, stdout=writer
  )
  os.close(writer)
  time.sleep(0.5)
  with open(reader, "rb") as file:
    assert file.read().count(b"\n") == LINES
  assert process.wait(timeout=60) == 0


def test_a_terminal_that_is_closed(tmp_path):
  master, slave = pty.openpty()
  program = STREAMS.replace("for i", "print('ready')\nsys.stdin.readline()\nfor i", 1)
  process = subprocess.Popen(
    [sys.executable, "-c", program, tmp_path / "marker"],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=slave,
    stderr=slave,
  )
  os.close(slave)
  assert b"ready" in os.read(master, 100)
  os.close(master)
  process.communicate(b"\n", timeout=60)
  assert (tmp_path / "marker").read_text() == "done"
  assert process.returncode == 10


def test_a_reader_that_does_not_read_is_waited_for_once(tmp_path):
  program = STREAMS.replace("readers()", "readers(patience_seconds=0.2)")
  started_seconds = time.monotonic()
  with subprocess.Popen(
    [sys.executable, "-c", program, tmp_path / "marker"], cwd=ROOT, stdout=subprocess.PIPE
  ) as process:
    assert process.wait(timeout=60) == 0
    assert time.monotonic() - started_seconds < 30
    # What fits into the pipe was written, in whole lines up to the last.
    assert process.stdout.read().startswith(b"line 0\nline 1\n")
  assert (tmp_path / "marker").read_text() == "done"


@pytest.mark.parametrize(
  ("prints_result", "redirections", "code", "said"),
  [
    (True, "> /dev/full", EXIT_LOST_OUTPUT, "error: standard output cannot be written: No space"),
    (True, "| true", 0, ""),
    (True, ">&-", 0, ""),
    (False, "> /dev/full", 0, "standard output cannot be written: No space"),
    (False, "| true", 0, ""),
    (False, "> /dev/full 2> /dev/full", 0, ""),
  ],
)
def test_exit_codes_of_commands(prints_result, redirections, code, said):
  program = COMMAND.format(body="print('a result')", prints_result=prints_result)
  result = shell(program, redirections)
  assert result.returncode == code
  assert result.stderr.startswith(said)
  assert result.stderr.count("\n") == bool(said)


@pytest.mark.parametrize(
  ("body", "code"),
  [("raise UserError('wrong')", EXIT_USER_ERROR), ("raise KeyError('unexpected')", 1)],
)
@pytest.mark.parametrize("redirections", ["| true", "> /dev/full", "2> /dev/full", ">&- 2>&-"])
def test_lost_output_hides_no_other_error(body, code, redirections):
  body = f"from nfnet.errors import UserError; print('a result'); {body}"
  result = shell(COMMAND.format(body=body, prints_result=True), redirections)
  assert result.returncode == code
  assert ("wrong" in result.stderr or "unexpected" in result.stderr) == ("2>" not in redirections)


def test_help_may_be_cut_short():
  result = shell(COMMAND.format(body="pass", prints_result=True), "| head -n 1", "--helpfull")
  assert "Traceback" not in result.stderr
  assert "ignored" not in result.stderr


def test_whether_output_is_lost(monkeypatch):
  reader, writer = os.pipe()
  file = LenientFile(writer)
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(file)))
  print("read", flush=True)
  assert not is_output_lost()
  os.close(reader)
  print("lost", flush=True)
  assert is_output_lost()
  monkeypatch.setattr(sys, "stdout", io.StringIO())
  assert not is_output_lost()
  os.close(writer)
