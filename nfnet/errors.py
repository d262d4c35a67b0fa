"""The one error type whose message is meant for the person at the terminal."""

import sys
from collections.abc import Callable

from absl import app, flags, logging


class UserError(Exception):
  """Something a user can mend: one line that says what, which value, and what to do."""


def run_main(main: Callable[[list[str]], None], **absl_arguments) -> None:
  """Runs `main` under absl; a `UserError` becomes one line on stderr and exit code 2."""

  def quiet_main(arguments: list[str]) -> None:
    # absl shows INFO by default, and Orbax writes some 100 such lines for each checkpoint.
    if flags.FLAGS["verbosity"].using_default_value:
      logging.set_verbosity(logging.WARNING)
    main(arguments)

  # Around all of absl, because its parsing of the arguments can raise too.
  try:
    app.run(quiet_main, **absl_arguments)
  except UserError as error:
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
