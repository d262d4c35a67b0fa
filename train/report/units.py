"""Durations as people read them."""


def format_duration(seconds: float) -> str:
  """H:MM:SS, with days in front from one day on."""
  days, rest = divmod(round(seconds), 86_400)
  clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
  return f"{days} d {clock}" if days else clock
