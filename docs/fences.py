"""A hook of MkDocs: what a fence says beside its language becomes the title of the block."""

import re
from typing import Any

TITLES = {
  "bash tpu": "on a TPU slice or a cluster",
  "bash slow": "takes minutes",
  "text output": "prints",
}
_FENCE = re.compile(r"^( *```)((\w+) \w+)$", re.MULTILINE)


def on_page_markdown(markdown: str, **unused: Any) -> str:
  """Called by MkDocs with the text of each page.

  Args:
    markdown: of the page.
    **unused: what else MkDocs hands over.
  """

  def titled(fence: re.Match[str]) -> str:
    title = TITLES.get(fence[2])
    return f"{fence[1]}{fence[3]}" + (f' title="{title}"' if title else "")

  return _FENCE.sub(titled, markdown)
