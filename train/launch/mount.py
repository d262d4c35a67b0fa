"""Parses the flag that names the workers' shared folder: an NFS share or a bucket."""

import re
from typing import NamedTuple

from nfnet.errors import UserError


class Mount(NamedTuple):
  """A shared folder to mount: either a bucket, or a host and a path on it; the others are None."""

  bucket: str | None
  host: str | None
  path: str | None


def parse_mount(shared: str) -> Mount:
  """Parses gs://BUCKET or HOST:/PATH.

  Args:
    shared: value of the flag --shared.

  Raises:
    UserError: `shared` is neither.
  """
  if match := re.fullmatch(r"gs://([a-z0-9][-_.a-z0-9]+)/?", shared):
    return Mount(match[1], None, None)
  if match := re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9.-]*):(/[^/\s]\S*)", shared):
    return Mount(None, match[1], match[2])
  raise UserError(
    f"--shared={shared}: write gs://BUCKET for a bucket (not a folder in one) or HOST:/PATH for an "
    "NFS share"
  )
