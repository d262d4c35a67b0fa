"""The one error type whose message is meant for the person at the terminal."""


class UserError(Exception):
  """Something a user can mend: one line that says what, which value, and what to do."""
