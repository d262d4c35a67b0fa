"""The one error type whose message is meant for the person at the terminal."""

import sys
from collections.abc import Callable

from absl import app


class UserError(Exception):
  """Something a user can mend: one line that says what, which value, and what to do."""


def run_main(main: Callable[[list[str]], None], **absl_arguments) -> None:
  """Runs `main` under absl; a `UserError` becomes one line on stderr and exit code 2."""

  def guarded(arguments: list[str]) -> None:
    try:
      main(arguments)
    except UserError as error:
      sys.stdout.flush()
      print(f"error: {error}", file=sys.stderr)
      sys.exit(2)

  app.run(guarded, **absl_arguments)
