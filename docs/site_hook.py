"""Prepares the pages for MkDocs: the API reference, code blocks, and pictures of results.

The pages are written for GitHub too, where a fence may say more than its language, and a picture
may lie outside of docs/. The reference has a page for each package, whichever there are.
"""

import pathlib
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("kernels", "nfnet", "train", "profiling")

TITLES = {
  "bash tpu": "on a TPU slice or a cluster",
  "bash slow": "takes minutes",
  "bash long": "takes longer",
  "python slow": "takes minutes",
  "text output": "prints",
}
"""Title of a code block, by what follows its fence."""

_FENCE = re.compile(r"^( *```)(\w+)((?: \w+)?)$", re.MULTILINE)
_PICTURES = "../profiling/results/"
_API_INDEX = """# API reference

There is a page for each package, made from the docstrings when the site is built. Shapes are in
the types: `Float[Array, "h w n c"]` is an array of floating-point numbers with four axes. Units are
in names or in the text, errors under "Raises", and the source is below each entry.
"""
_WITH_HEADING = """
    options:
      show_root_heading: true
      show_root_toc_entry: true
      show_root_full_path: true
"""


def reference_pages() -> dict[str, str]:
  """Returns the text of each page of the API reference, by its name, such as "train.step".

  The page of a top-level package has the package's own modules. The page of a package inside of it
  has all modules below that.
  """
  pages = {}
  for package in PACKAGES:
    modules = sorted(path.stem for path in (ROOT / package).glob("*.py"))
    entries = [f"::: {package}.{name}{_WITH_HEADING}" for name in modules if name[0] != "_"]
    own = f"::: {package}\n    options:\n      show_submodules: false\n"
    pages[package] = "\n".join([f"# `{package}`\n", own, *entries])
    for init in sorted((ROOT / package).glob("*/__init__.py")):
      name = f"{package}.{init.parent.name}"
      pages[name] = f"# `{name}`\n\n::: {name}\n"
  return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Appends the API reference to the navigation; MkDocs calls this first.

  Args:
    config: configuration of the site, which is changed in place.
  """
  pages = [{name: f"api/{name}.md"} for name in reference_pages()]
  config.nav.append({"API reference": ["api/index.md", *pages]})
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the API reference and the pictures of profiling/results; MkDocs calls this once.

  Args:
    files: everything that the site is made from, which is changed in place.
    config: configuration of the site.
  """
  for name, text in {"index": _API_INDEX, **reference_pages()}.items():
    files.append(File.generated(config, f"api/{name}.md", content=text))
  for picture in (ROOT / "profiling" / "results").glob("*.png"):
    files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
  return files


def on_page_markdown(markdown: str, **unused: Any) -> str:
  """Rewrites fences and links to pictures; MkDocs calls this for each page.

  Args:
    markdown: text of the page.
    **unused: what else MkDocs hands over.

  Returns:
    The text with a title for each fence that says more than its language, and without a copy button
    on blocks of plain text, which nobody is to type.
  """

  def described(fence: re.Match[str]) -> str:
    classes = f".{fence[2]} .no-copy" if fence[2] == "text" else f".{fence[2]}"
    title = TITLES.get(fence[2] + fence[3])
    return f"{fence[1]} {{ {classes}" + (f' title="{title}"' if title else "") + " }"

  return _FENCE.sub(described, markdown).replace(f"]({_PICTURES}", "](results/")
