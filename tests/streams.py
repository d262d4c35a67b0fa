"""A text stream that says whether it is a terminal, which decides whether progress is shown."""

import io


class Stream(io.StringIO):
  """Keeps what is written; `is_terminal` is what `isatty` returns."""

  def __init__(self, is_terminal):
    super().__init__()
    self._is_terminal = is_terminal

  def isatty(self):
    return self._is_terminal
