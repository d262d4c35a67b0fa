"""Starts many workers on one sweep folder, each in a process of its own.

    python many_workers.py PLAN FOLDER WORKERS

The trials are trivial: a shell script notes that it has run and writes the result of the last step.
The workers are forked, because fifty interpreters would take more memory than a machine may have.
Worker i writes to FOLDER/worker-i.txt; the exit code is the number of workers that failed.
"""

import os
import pathlib
import sys
import traceback

from train.sweep.folder import SweepFolder
from train.sweep.plan import load_plan
from train.sweep.stop import Stop
from train.sweep.trial_table import LiveTable
from train.sweep.worker import Worker

TRIAL = """
for argument in "$@"; do
  case "$argument" in --workdir=*) run="${argument#--workdir=}";; esac
done
mkdir -p "$run"
echo ran >> "$run/../ran"
steps=$(sed -n 's/.*"steps": \\([0-9]*\\).*/\\1/p' "$run/../trial.json")
echo '{"step": '$steps', "kind": "evaluation", "loss": 1.5, "top1": 0.5}' > "$run/metrics.jsonl"
"""


def work(plan_path, path):
  """Works on the sweep as `python -m train.sweep` does."""
  plan = load_plan(plan_path)
  folder = SweepFolder(path)
  folder.create(plan.fixed)
  with Stop() as stop, LiveTable() as table:
    program = ("/bin/sh", "-c", TRIAL, "trial")
    Worker(plan, folder, silent_seconds_max=300, stop=stop, table=table, program=program).work()


def main():
  plan_path, path, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
  children = []
  for index in range(workers):
    child = os.fork()
    if child:
      children.append(child)
      continue
    output = os.open(f"{path}-worker-{index}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
      work(plan_path, pathlib.Path(path))
      code = 0
    except BaseException:
      traceback.print_exc()
    finally:
      sys.stdout.flush()
      os._exit(code)
  sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))


if __name__ == "__main__":
  main()
