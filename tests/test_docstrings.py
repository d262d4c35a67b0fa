"""Checks that docstrings begin with a sentence: alone, `python -m pytest tests/test_docstrings.py`.

A function's or method's docstring begins with a third-person verb ("Returns the rows.") or is a
full sentence. Modules, classes, properties and documented attributes may also be noun phrases ("The
training loop."), but not the fragments that make no sense in an editor's hover: a preposition, a
conjunction, a bare "That" or a question word first. No parser of English is at work here: a verb
is a word of the lists below. Add a verb which is missing.

`python tests/test_docstrings.py [PATH ...]` prints what violates the rule, and how much by folder.
"""

import ast
import collections
import itertools
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("kernels", "nfnet", "train", "profiling")
FILES = [path.relative_to(ROOT) for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py"))]

VERBS_TEXT = """
abandons aborts accepts accumulates acquires activates adapts adds adjusts advances aggregates
agrees aligns allocates allows alternates annotates announces answers appears appends applies
approximates arranges ascends asks assembles asserts assigns associates assumes attaches augments
balances becomes begins belongs binds bootstraps brings broadcasts builds calculates calibrates
cancels captures carries centers chooses clamps classifies cleans clears clips closes collapses
collects combines comes commits compares competes compiles complains completes compresses computes
concatenates confirms conforms connects considers constrains constructs consumes contains
continues contributes converts convolves copies corrects corresponds covers creates crops deals
decays decides declares decodes decompresses decreases deduplicates defines delegates deletes
delimits delivers denotes depends derives describes deserializes detaches detects determines
differentiates disables discards discovers dispatches displays distinguishes distorts distributes
divides does downloads downsamples drains drives elects embeds emits empties enables encodes
enforces ensures enters enumerates equals escapes evaluates examines exceeds excludes executes
exhausts exits expands expects explains exposes expresses extends extracts extrapolates fails
feeds fetches fills finalizes finds fine-tunes finetunes finishes flattens flushes follows forbids
forgets frees fuses gathers generates gets gives goes greets grows guarantees halts halves handles
happens hashes helps hides holds identifies ignores implements imports includes increases
increments indicates infers informs inherits initializes inserts inspects installs integrates
interleaves interpolates interprets interrupts intersects inverts invokes isolates iterates judges
justifies keeps kills knows launches lays learns leaves lets lies listens loads locates loses
lowers magnifies makes manages marshals materializes merges migrates minimizes mirrors mixes
monitors mounts moves multiplexes multiplies mutates negates nests normalizes notifies nudges
observes obtains occurs omits opens operates optimizes outlines overlaps overwrites owns packs
pads parallelizes parses partitions peels penalizes performs permits permutes persists perturbs
plugs polishes pollutes pops populates pre-trains precedes predicts prefers prefetches prepares
prepends preserves prevents proceeds produces promotes propagates proposes protects proves
provides prunes publishes pulls purges pushes puts quantifies quantizes quits raises reaches
reacts realizes reassembles rebalances rebuilds recalls receives recognizes recommends recomputes
reconciles reconstructs recovers recreates redirects redistributes redoes redraws reduces refers
refines refits refreshes refuses refutes regards registers regroups rejects rejoins relates
relaunches relies reloads remains remaps rematerializes remembers removes renames renders reopens
reorders repacks repeats rephrases replaces replays replicates represents requires rereads reruns
resamples rescales reserves reshapes resizes resolves responds restores restricts resumes retains
retries retrieves reuses reveals reverts rewinds rotates satisfies saturates says scatters scrapes
seals seems selects sends separates serializes serves settles shaves sheds shortens shows shrinks
shuffles shuts simplifies simulates sits skips sleeps solves spawns specializes specifies spends
squashes squeezes stalls standardizes stitches strengthens strips submits subsamples subtracts
succeeds suggests suits summarizes supersedes suppresses surrounds survives synchronizes
synthesizes tabulates takes tears tells terminates throttles toggles tolerates touches translates
transposes traverses treats tries triggers trims truncates tunes undoes unflattens unites unlocks
audits unpacks unregisters unrolls unwraps uploads upsamples validates varies vectorizes verifies
waits
wakes warms warns watches weighs widens works writes zeroes zips
"""
NOUNS_TOO_TEXT = """
accounts acts attempts averages backs bins blends blocks bounds breaks caches calls casts changes
charges checks claims clones commands concerns controls costs counts cuts cycles delays demands
draws drops dumps duplicates ends estimates exchanges exports figures files filters fits flips
folds forces forks formats forwards groups guards guesses hands hints indexes issues joins jumps
labels lasts leads limits links lists locks logs looks maps marks masks matches means measures
names needs notes notices offers orders packages pairs passes pauses pickles picks pins places
plans plays plots points polls pools posts prefixes presents prints probes processes profiles
projects queries quotes ranks reads records relays releases reports requests resets restarts
results returns reverses reviews rewrites rolls rounds runs samples saves scales scans schedules
scores searches seeds sets shards shares shifts signals sketches slices sorts splits spreads
squares stacks stamps stands starts stays steps stops stores streams sums supplies supports swaps
switches symlinks tests ties tiles times tops traces tracks trains transfers transforms turns
updates upgrades uses visits walks wins wraps yields
"""
AUXILIARIES_TEXT = """
is are was were has have had can cannot could may might must shall should will would do did
does need
"""
SUBORDINATORS_TEXT = """
that which who whom whose what where when whether how why if unless until as than because since
while after before so
"""
BARE_QUESTION_WORDS_TEXT = "that which who whom whose what whether how why those"
OTHER_FRAGMENT_STARTS_TEXT = """
of likewise ditto with without by in from to at on for beside besides under over within around
through between among behind beyond below above into onto via per against about across and or but
nor not only just also has have is are was were can may must does do
"""

NOUNS_TOO = frozenset(NOUNS_TOO_TEXT.split())
"""Verbs that are plural nouns as well: no verb before "of", nor in the middle of a sentence."""
VERBS = frozenset(VERBS_TEXT.split()) | NOUNS_TOO
AUXILIARIES = frozenset(AUXILIARIES_TEXT.split())
SUBORDINATORS = frozenset(SUBORDINATORS_TEXT.split())
"""Each of them begins a subordinate clause, which has a verb of its own."""
BARE_QUESTION_WORDS = frozenset(BARE_QUESTION_WORDS_TEXT.split())
FRAGMENT_STARTS = (
  SUBORDINATORS | BARE_QUESTION_WORDS | frozenset(OTHER_FRAGMENT_STARTS_TEXT.split())
)
AFTER_A_NOUN = ("of", "is", "are", "was", "were", "which", "who")
ABBREVIATIONS = ("e.g.", "i.e.", "cf.", "vs.", "etc.", "Fig.", "Eq.", "Sec.", "App.")


def first_sentence(docstring, ends=".:;!?"):
  """Returns the docstring up to the end of its first sentence or clause, on one line."""
  text = " ".join(docstring.strip().split("\n\n")[0].split())
  for match in re.finditer(rf"[{ends}](?=\s|$)", text):
    if not text[: match.end()].endswith(ABBREVIATIONS):
      return text[: match.start()]
  return text


def words_of(clause):
  """Returns the words in lower case; code in backticks is one word each, without a meaning."""
  clause = re.sub(r"`[^`]*`", "`code`", re.sub(r"\([^()]*\)", " ", clause))
  return [word.strip(",.'\"").lower() for word in clause.split() if word.strip(",.'\"")]


def begins_with_verb(words):
  """Returns whether the first word, or the one after an adverb, is a verb in third person."""
  if len(words) > 1 and words[0].endswith("ly"):
    words = words[1:]
  if not words or words[0] not in VERBS:
    return False
  if words[0] in NOUNS_TOO and len(words) > 2:
    if words[1] in ("and", "or"):
      return words[2] in VERBS
    return words[1] not in AFTER_A_NOUN
  return True


def is_clause(words):
  """Returns whether a subject is followed by a verb that belongs to no subordinate clause."""
  verbs_missing = 1
  for word in words[1:]:
    if word in SUBORDINATORS:
      verbs_missing += 1
    elif word in AUXILIARIES or (word in VERBS and word not in NOUNS_TOO):
      verbs_missing -= 1
    if not verbs_missing:
      return True
  return False


def complaint(docstring, needs_verb):
  """Says in a few words what is wrong with a docstring's beginning; None if nothing is.

  Args:
    docstring: text as it stands in the source.
    needs_verb: whether a noun phrase is too little, as for functions and methods.
  """
  sentence = first_sentence(docstring)
  words = words_of(sentence)
  if not words:
    return "is empty"
  if words[0] in FRAGMENT_STARTS:
    # "For each shape, returns ..." and "In a loop, XLA copies ..." are sentences.
    rest = [] if words[0] in BARE_QUESTION_WORDS else words_of(sentence.partition(", ")[2])
    if rest and rest[0] not in FRAGMENT_STARTS and (begins_with_verb(rest) or is_clause(rest)):
      return None
    return f"is a fragment that begins with {words[0]!r}"
  if begins_with_verb(words) or is_clause(words):
    return None
  if needs_verb:
    return 'has no verb in its first sentence, such as "Returns"'
  if len(words_of(first_sentence(docstring, ends=".;!?"))) == 1 and words != ["`code`"]:
    return "is a single word"
  return None


def docstrings(tree):
  """Yields (line, docstring, needs_verb) of all definitions and documented attributes."""
  for node in ast.walk(tree):
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if is_function or isinstance(node, ast.ClassDef | ast.Module):
      docstring = ast.get_docstring(node)
      if docstring is not None:
        yield node.body[0].lineno, docstring, is_function and not is_property(node)
    if isinstance(node, ast.ClassDef | ast.Module):
      for before, after in itertools.pairwise(node.body):
        if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
          match after.value:
            case ast.Constant(value=str(text)):
              yield after.lineno, text, False


def is_property(function):
  """Returns whether a function is read as an attribute, which a noun phrase describes."""
  names = (ast.unparse(decorator).split(".")[-1] for decorator in function.decorator_list)
  return any(name in ("property", "cached_property") for name in names)


def violations(path):
  """Returns a line for each docstring of a file that is not a sentence."""
  found = []
  for line, docstring, needs_verb in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
    problem = complaint(docstring, needs_verb)
    if problem:
      found.append(f"{path}:{line}: {first_sentence(docstring)!r} {problem}")
  return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_docstrings_begin_with_a_sentence(path):
  found = violations(ROOT / path)
  assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
  "docstring",
  [
    "Returns the sum over all cores.",
    "Reads MNIST's four files: `train-*` becomes `train`.",
    "Sums the gradients.",
    "Names each parameter as timm does.",
    "Reads and decodes an image.",
    "Looks for a file in the folder.",
    "Nothing that is not finite is ever saved.",
    "Checks that the tensors are all parameters of one network.",
    "Lazily opens the files.",
    "The scale of the input is put into that of the weights, where it costs nothing.",
    "Orbax waits for all reads before it raises the error of the first.",
    "For each shape, returns the fastest tile.",
    "In a loop, XLA copies the stacks of saved activations.",
    "Returns e.g. 3.",
    "There is no derivative with respect to the input's scale.",
    "`variance_floor` is the reference's constant.",
  ],
)
def test_accepts_sentences(docstring):
  assert complaint(docstring, needs_verb=True) is None


@pytest.mark.parametrize(
  "docstring",
  [
    "",
    "Of all cores.",
    "That of the first process.",
    "Likewise after the last.",
    "As the reference; the floor is its constant.",
    "As the reference, whose standardization of weights it is given.",
    "For a terminal.",
    "For `arrange_blocks`: the arrangement in which `apply` has nothing to stack.",
    "Of rows that share a name the one with the lowest loss, in the order of the first.",
    "Whether a file is one.",
    "What is wrong with a checkpoint, in a few words, or None.",
    "Is complete.",
    "Everything that is printed.",
    "Names of parameters that fit VMEM together.",
    "Names and shapes of all parameters.",
    "Gradients of weight and gain.",
    "Rows in a block.",
    "Parts of the activated input that no pixel is written to.",
    "The experiment whose step that is.",
    "A table.",
    "y = conv(pool(activation(x))).",
  ],
)
def test_rejects_fragments(docstring):
  assert complaint(docstring, needs_verb=True)


@pytest.mark.parametrize(
  "docstring",
  ["The training loop.", "Labeled images by split.", "RandAugment: random distortions."],
)
def test_a_class_may_be_a_noun_phrase(docstring):
  assert complaint(docstring, needs_verb=False) is None
  assert complaint(docstring, needs_verb=True)


@pytest.mark.parametrize(
  "docstring",
  ["Estimated.", "What was found.", "From files to batches.", "Of one network.", "How it is cut."],
)
def test_a_class_may_not_be_a_fragment(docstring):
  assert complaint(docstring, needs_verb=False)


def test_every_kind_of_definition_is_looked_at():
  source = '''
"""Of a module."""
LIMIT = 1
"""Of a constant."""
class Row:
  """Of a class."""
  width: int
  """Of a field."""
  @property
  def half(self):
    """Half of the width."""
  def method(self):
    """A method."""
    def inner():
      """Inner."""
'''
  found = {docstring: needs_verb for _, docstring, needs_verb in docstrings(ast.parse(source))}
  assert found == {
    "Of a module.": False,
    "Of a constant.": False,
    "Of a class.": False,
    "Of a field.": False,
    "Half of the width.": False,
    "A method.": True,
    "Inner.": True,
  }


def main(paths):
  """Prints the violations in files and folders, and how many there are in each folder."""
  counts = collections.Counter()
  for top in map(pathlib.Path, paths or FOLDERS):
    for path in sorted(top.rglob("*.py")) if top.is_dir() else [top]:
      found = violations(path)
      counts[path.parent] += len(found)
      print("".join(f"{line}\n" for line in found), end="")
  print("".join(f"{count:5} {folder}\n" for folder, count in sorted(counts.items())), end="")


if __name__ == "__main__":
  main(sys.argv[1:])
