import io

from train.run.progress import ProgressLine


class Terminal(io.StringIO):
  """Keeps what a terminal would show: carriage returns overwrite, CSI K clears."""

  def isatty(self):
    return True

  def shown(self):
    lines = []
    for line in self.getvalue().split("\n"):
      lines.append(line.rpartition("\r")[2].replace("\x1b[K", ""))
    return lines


def record(step, **changes):
  return {
    "step": step,
    "kind": "train",
    "loss": 2.34567,
    "learning_rate": 0.04,
    "images_per_second": 1234.4,
    "data_wait_share": 0.031,
    **changes,
  }


def evaluation(step, top1, **changes):
  return {"step": step, "kind": "evaluation", "loss": 1.5, "top1": top1, "ema": False, **changes}


def show(stream):
  clock = iter([100.0, 150.0]).__next__
  with ProgressLine(45_000, stream=stream, clock=clock) as progress:
    progress.update(record(100))
    progress.update(record(1100))
    progress.evaluation(evaluation(1100, 0.5, top5=0.8))
    progress.evaluation(evaluation(1100, 0.625, ema=True))
  return stream


LINES = [
  "step   100/45000  loss 2.3457  learning rate 0.04  1234 images/s"
  "  waiting for data 3 %  remaining unknown",
  "step  1100/45000  loss 2.3457  learning rate 0.04  1234 images/s"
  "  waiting for data 3 %  remaining 0:36:35",
  "evaluation at step 1100 (parameters): loss 1.5000  top-1 50.00 %  top-5 80.00 %",
  "evaluation at step 1100 (moving average): loss 1.5000  top-1 62.50 %",
]


def test_file_gets_a_line_each_time():
  assert show(io.StringIO()).getvalue().splitlines() == LINES


def test_terminal_line_is_rewritten_below_the_messages():
  assert show(Terminal()).shown() == [*LINES[2:], LINES[1], ""]


def test_terminal_line_leaves_nothing_of_a_longer_one():
  stream = Terminal()
  progress = ProgressLine(10, stream=stream)
  progress.update(record(9, images_per_second=1e9))
  progress.update(record(10))
  assert stream.getvalue().endswith("remaining 0:00:00\x1b[K")
