"""The thousand classes of ImageNet (ILSVRC 2012), by number and by name.

imagenet_classes.txt: a line per class in the order of the labels that every published
class-conditional model uses: its WordNet synset, then the synset's words. The words are
WordNet's (WordNet 3.0, copyright 2006 by Princeton University, whose licence lets them be
copied with this notice).
"""

import difflib
import functools
from pathlib import Path

from tokzoo.errors import TokzooError

NUM_CLASSES = 1000


@functools.cache
def class_names() -> tuple[tuple[str, ...], ...]:
  """The names of each class; the first is the one to show. `[207][0]` is "golden retriever"."""
  text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
  lines = [line.split("\t") for line in text.splitlines()]
  return tuple(tuple(words.split(", ")) for _, words in lines)


def class_of(name: str) -> int:
  """The number of the class of that name, whatever the case.

  Raises:
    TokzooError: no class of that name (the nearest are named), or two.
  """
  wanted = name.strip().lower().replace("_", " ")
  numbers: dict[str, list[int]] = {}
  for number, names in enumerate(class_names()):
    for word in names:
      numbers.setdefault(word.lower(), []).append(number)
  found = numbers.get(wanted, [])
  # A class that is called so first goes before one that is called so as well.
  first = [n for n in found if class_names()[n][0].lower() == wanted]
  found = first if len(first) == 1 else found
  if len(found) == 1:
    return found[0]
  if found:
    told = " and ".join(f"{n} ({', '.join(class_names()[n])})" for n in found)
    raise TokzooError(f"two classes are called {name!r}, {told}: give the number.")
  near = difflib.get_close_matches(wanted, numbers, n=3, cutoff=0.6)
  hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
  raise TokzooError(
    f"no class of ImageNet is called {name!r}: {hint}give one of its names, or a number "
    f"from 0 to {NUM_CLASSES - 1}."
  )
