"""Defines the one error type whose message is meant for the person at the terminal."""


class UserError(Exception):
  """Reports what a user can correct, in one line: what is wrong, its value, and what to do."""
