"""Parses each of several arguments as a command does, and prints what is wrong with it as JSON.

    python -m tests.parsed_flags MODULE ARGUMENT...

The command itself does not run.
"""

import json
import runpy
import sys

from absl import flags
from absl.testing import flagsaver

from nfnet import command_line
from nfnet.errors import UserError


def _parse_each(unused_main, *, flags_parser=None, **unused_options):
  program, *arguments = sys.argv
  found = {}
  for argument in arguments:
    found[argument] = None
    try:
      with flagsaver.flagsaver():
        (flags_parser or flags.FLAGS)([program, argument])
    except (UserError, flags.Error) as error:
      found[argument] = str(error)
  print(json.dumps(found))


if __name__ == "__main__":
  command_line.run_main = _parse_each
  del sys.argv[0]
  runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
