"""Defines the error types whose messages are meant for the person at the terminal."""


class UserError(Exception):
  """Reports what a user can correct, in one line: what is wrong, its value, and what to do."""


class InUseError(UserError):
  """Reports that another process is using what this one needs, so that a later try may succeed."""
