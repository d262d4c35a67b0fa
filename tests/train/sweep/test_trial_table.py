import io
import json
import os

import pytest

from tests.train.sweep.trials import make_trial
from train.sweep.claim import claim_trial
from train.sweep.folder import DONE, FAILED, SweepFolder
from train.sweep.results import results
from train.sweep.trial import trial_name
from train.sweep.trial_table import LiveTable, best_rates_text, table_rows, table_text


def shown_rows(folder):
  entries = folder.entries()
  return table_rows(folder, entries, results(folder, entries))


RATES = (0.1, 0.2, 0.4, 0.8, 1.6)


class Terminal(io.StringIO):
  """Keeps what a terminal would show of the few commands that are used."""

  def isatty(self):
    return True

  def shown(self):
    lines, row, column = [""], 0, 0
    text = self.getvalue()
    while text:
      if text.startswith("\x1b["):
        end = 2 + next(i for i, c in enumerate(text[2:]) if c.isalpha())
        number, command = text[2:end], text[end]
        text = text[end + 1 :]
        if command == "A":
          row -= int(number)
          assert row >= 0
        elif command == "K":
          lines[row] = lines[row][:column]
        else:
          assert command == "J"
          lines[row:] = [lines[row][:column]]
        continue
      character, text = text[0], text[1:]
      if character == "\n":
        row, column = row + 1, 0
        lines += [""] * (row + 1 - len(lines))
      elif character == "\r":
        column = 0
      else:
        lines[row] = lines[row][:column] + character + lines[row][column + 1 :]
        column += 1
    return lines


def write_metrics(folder, name, records):
  workdir = folder.workdir(name)
  workdir.mkdir(exist_ok=True)
  text = "".join(json.dumps(record) + "\n" for record in records)
  # A line that is being written.
  (workdir / "metrics.jsonl").write_text(text + '{"step": 99, "kind": "tr')


@pytest.fixture
def folder(tmp_path):
  """A folder with trials that are done, failed, diverged, running and waiting."""
  made = SweepFolder(tmp_path / "sweep")
  made.create({})
  for rate in RATES:
    made.add(make_trial(rate, variant="F0", steps=100))
  names = [trial_name("F0", 0.5, rate) for rate in RATES]
  claims = [
    claim_trial(made, made.entries()[name], f"host.{i}.1700000000") for i, name in enumerate(names)
  ]
  result = {"trial": names[0], "name": "F0", "parameters": 1000, "epochs": 0.5}
  result |= {"learning_rate": 0.1, "compute_flops": 10**9, "loss_nats": 1.25}
  result |= {"held_out_error_percent": 37.5}
  claims[0].move(DONE, result)
  claims[1].move(FAILED, {"reason": "disk full " * 20})
  claims[2].move(FAILED, {"reason": "loss nan", "diverged": True})
  training = {"step": 40, "kind": "train", "loss": 2.5, "images_per_second": 32.0}
  evaluation = {"step": 40, "kind": "evaluation", "loss": None, "top1": 0.5, "ema": False}
  average = {**evaluation, "loss": 2.25, "ema": True}
  write_metrics(made, names[3], [{**training, "step": 20}, evaluation, average, training])
  claims[4].move("waiting", {})
  return made


def test_a_table_says_of_each_trial_what_is_known(folder):
  *lines, counts = table_text(shown_rows(folder)).splitlines()
  header, *found = (line.split() for line in lines if not line.startswith("---"))
  assert " ".join(header) == "trial state step loss held-out top-1 images/s left worker"
  nothing = ["-"] * 5
  assert found == [
    ["F0_epochs-0.5_rate-1.6", "waiting", "-/100", *nothing],
    [
      *("F0_epochs-0.5_rate-0.8", "running", "40/100", "2.5000", "2.2500", "50.00%", "32"),
      *("0:00:30", "host.3.1700000000"),
    ],
    ["F0_epochs-0.5_rate-0.4", "diverged", "-/100", *nothing, "loss", "nan"],
    # A long reason is cut.
    ["F0_epochs-0.5_rate-0.2", "failed", "-/100", *nothing, *["disk", "full"] * 5, "disk", "fu..."],
    ["F0_epochs-0.5_rate-0.1", "done", "100/100", "-", "1.2500", "62.50%", "-", "-"],
  ]
  assert counts == "1 waiting, 1 running, 1 failed, 1 done, 1 diverged"


def test_elsewhere_a_line_for_each_change(folder):
  stream = io.StringIO()
  table = LiveTable(stream=stream)
  table.update(folder, folder.entries())
  assert len(stream.getvalue().splitlines()) == len(RATES)
  assert "F0_epochs-0.5_rate-0.1: done, held-out loss 1.2500, top-1 62.50%\n" in stream.getvalue()
  before = stream.getvalue()
  table.update(folder, folder.entries())
  assert stream.getvalue() == before
  claim_trial(folder, folder.entries()["F0_epochs-0.5_rate-1.6"], "other.7.8")
  table.update(folder, folder.entries())
  table.close()
  assert stream.getvalue() == before + "F0_epochs-0.5_rate-1.6: running (other.7.8)\n"


def live(columns=200, lines=50):
  stream = Terminal()
  now_seconds = iter(range(0, 100, 2)).__next__
  size = os.terminal_size((columns, lines))
  return stream, LiveTable(stream=stream, clock=now_seconds, terminal_size=lambda: size)


def test_a_terminal_shows_one_table_that_is_taken_away(folder):
  stream, table = live()
  with table:
    table.update(folder, folder.entries())
    expected = table_text(shown_rows(folder)).splitlines()
    assert stream.shown() == [*expected, ""]
    claim_trial(folder, folder.entries()["F0_epochs-0.5_rate-1.6"], "other.7.8")
    table.update(folder, folder.entries())
    expected = table_text(shown_rows(folder)).splitlines()
    assert stream.shown() == [*expected, ""]
  assert stream.shown() == [""]


def test_a_small_terminal_shows_what_happens_now(folder):
  stream, table = live(columns=40, lines=9)
  table.update(folder, folder.entries())
  table.update(folder, folder.entries())
  shown = stream.shown()
  assert len(shown) <= 9
  assert max(map(len, shown)) < 40
  assert [line.split()[1] for line in shown if line.startswith("F0")] == ["running", "failed"]
  assert shown[-3:] == ["and 3 more", "1 waiting, 1 running, 1 failed, 1 done,", ""]


def test_a_table_is_redrawn_once_a_second(folder):
  stream = Terminal()
  now_seconds = 0.0
  table = LiveTable(stream=stream, clock=lambda: now_seconds)
  table.update(folder, folder.entries())
  before = stream.getvalue()
  now_seconds = 0.5
  table.update(folder, folder.entries())
  assert stream.getvalue() == before
  now_seconds = 1.5
  table.update(folder, folder.entries())
  assert stream.getvalue() != before


def test_best_rates():
  rows = [
    {"name": v, "parameters": p, "epochs": e, "learning_rate": r, "loss_nats": loss}
    for v, p, e, r, loss in (
      ("F3", 30, 1.0, 0.8, 2.0),
      ("F0", 10, 0.5, 1.6, 3.0),
      ("F0", 10, 0.5, 0.8, 2.9),
      ("F0", 10, 1.0, 0.8, 2.8),
    )
  ]
  assert [line.split() for line in best_rates_text(rows).splitlines()[3:-1]] == [
    ["F0", "0.8", "(2.9000)", "0.8", "(2.8000)"],
    ["F3", "-", "0.8", "(2.0000)"],
  ]
