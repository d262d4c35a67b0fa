"""Lists in the pages are complete: of pages, of variants, and of public names."""

import ast
import re

import pytest

from nfnet.cost import count
from nfnet.variants import VARIANTS
from tests.docs.pages import PACKAGES, PAGES, ROOT, page_name, read_page

DOCS = ROOT / "docs"


@pytest.mark.parametrize(
  ("file", "link"), [("README.md", "docs/{}"), ("docs/index.md", "{}"), ("mkdocs.yml", "{}")]
)
def test_every_page_is_linked(file, link):
  text = (ROOT / file).read_text(encoding="utf-8")
  pages = {path.name for path in DOCS.glob("*.md")} - {"index.md"}
  pattern = r": {}$" if file == "mkdocs.yml" else r"\({}\)"
  assert [
    name
    for name in sorted(pages)
    if not re.search(pattern.format(re.escape(link.format(name))), text, re.MULTILINE)
  ] == []


def test_the_tables_of_variants_are_what_the_code_counts():
  text = (DOCS / "networks.md").read_text(encoding="utf-8")
  rows = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in text.splitlines()
    if re.match(r"\| [FPNM]\d", line)
  ]
  assert [row[0] for row in rows] == [f"F{n}, F{n}+" for n in range(8)] + ["P0", "N0", "M0"]
  for names, depths, third, parameters, macs in rows:
    variants = [VARIANTS[name] for name in names.split(", ")]
    classes, prefix, digits = (1000, 1e9, 1) if len(variants) == 2 else (10, 1e6, 2)
    costs = [count(v.name, num_classes=classes, pixels=v.test_pixels) for v in variants]
    assert parameters == " / ".join(f"{cost.parameters / 1e6:.{digits}f} M" for cost in costs)
    letter = "G" if prefix == 1e9 else "M"
    assert macs == " / ".join(f"{cost.macs / prefix:.1f} {letter}" for cost in costs)
    for variant in variants:
      assert depths == ", ".join(map(str, variant.stage_depths))
      pixels = (variant.train_pixels, variant.test_pixels)
      numbers = pixels if len(variants) == 2 else variant.stage_channels
      assert third == ", ".join(map(str, numbers))
  for letter in "PNM":
    first = VARIANTS[f"{letter}0"]
    assert (first.train_pixels, first.test_pixels) == (32, 32)
    for n in range(4):
      scaled = tuple((n + 1) * depth for depth in first.stage_depths)
      assert VARIANTS[f"{letter}{n}"].stage_depths == scaled


def imports(page):
  """Yields module and name of everything of this project that the programs of a page import."""
  for block in read_page(page):
    if block.kind.startswith("python"):
      for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES:
          yield from ((node.module, alias.name) for alias in node.names)


def test_what_the_pages_import_is_declared_public():
  text = (DOCS / "from_python.md").read_text(encoding="utf-8")
  _, heading, declared = text.partition("## Which names are public")
  assert heading
  found = {
    (page_name(page), *names)
    for page in PAGES
    if page.name != "kernels.md"
    for names in imports(page)
  }
  assert len(found) > 5
  for page, module, name in sorted(found):
    # The page itself has those of `train.step`.
    is_above = module.startswith("train.step.") and page == "docs/from_python.md"
    assert is_above or re.search(rf"`{name}`[^-]*`{re.escape(module)}`", declared), (module, name)
