"""Formats durations and sizes as text."""


def format_duration(seconds: float) -> str:
  """Returns a duration as H:MM:SS, after the number of days if there are any."""
  days, rest = divmod(round(seconds), 86_400)
  clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
  return f"{days} d {clock}" if days else clock


def format_gib(size_bytes: float) -> str:
  """Returns a size in GiB with one decimal, without the unit, for columns that name it."""
  return f"{size_bytes / 2**30:.1f}"


def format_size(size_bytes: float) -> str:
  """Returns a size with one decimal and a decimal unit, for example "12.3 GB"."""
  for unit_bytes, unit in ((1e9, "GB"), (1e6, "MB")):
    if size_bytes >= unit_bytes:
      return f"{size_bytes / unit_bytes:.1f} {unit}"
  return f"{size_bytes / 1e3:.1f} kB"
