"""ImageNet's classes: names to numbers, and names that are none or two."""

import pytest

from tokzoo.data.imagenet import NUM_CLASSES, class_names, class_of
from tokzoo.errors import TokzooError


def test_names_are_those_of_the_published_labels():
  names = class_names()
  assert len(names) == NUM_CLASSES
  shown = {
    0: "tench",
    207: "golden retriever",
    388: "giant panda",
    999: "toilet tissue",
  }
  assert {number: names[number][0] for number in shown} == shown


def test_a_class_by_any_of_its_names():
  assert class_of("Golden_Retriever") == class_of(" golden retriever") == 207
  assert class_of("coon bear") == 388


def test_a_name_of_none_or_of_two():
  with pytest.raises(TokzooError, match=r"'golden retreiver'.*mean 'golden retriever'"):
    class_of("golden retreiver")
  with pytest.raises(TokzooError, match=r"134 \(crane\) and 517 \(crane\)"):
    class_of("crane")
