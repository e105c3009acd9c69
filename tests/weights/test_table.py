"""Conversion tables: both directions are total, and every disagreement is named."""

import numpy as np
import pytest

from tests.models import TOKENIZER, random_variables
from tokzoo.errors import TokzooError
from tokzoo.tokenizers.image.instella_t2i import WEIGHTS
from tokzoo.weights import CONV2D, KEEP, LINEAR, Rule, Table, fingerprint, flatten

TABLE = Table(
  rules=(
    Rule("layers.{i}.{name}.weight", "params/block_{i}/{name}/kernel", LINEAR),
    Rule("layers.{i}.{name}.bias", "params/block_{i}/{name}/bias"),
    Rule("stem.weight", "params/stem/kernel", CONV2D),
    Rule("scale", "params/scale"),
  ),
  ignore=(r".*\.num_batches_tracked",),
)


def state() -> dict[str, np.ndarray]:
  draw = np.random.default_rng(0)
  shapes = {
    "layers.0.fc.weight": (3, 5),
    "layers.0.fc.bias": (3,),
    "layers.11.fc.weight": (4, 3),
    "layers.11.fc.bias": (4,),
    "stem.weight": (7, 2, 3, 4),
    "scale": (),
  }
  return {
    key: np.asarray(draw.normal(size=shape), np.float32)
    for key, shape in shapes.items()
  }


def variables() -> dict:
  s = state()
  return {
    "params": {
      "block_0": {
        "fc": {"kernel": s["layers.0.fc.weight"].T, "bias": s["layers.0.fc.bias"]}
      },
      "block_11": {
        "fc": {"kernel": s["layers.11.fc.weight"].T, "bias": s["layers.11.fc.bias"]}
      },
      "stem": {"kernel": np.einsum("oihw->hwio", s["stem.weight"])},
      "scale": s["scale"],
    }
  }


def test_to_ours_is_what_it_should_be():
  ours = TABLE.to_ours(state(), variables())
  for path, array in flatten(variables()).items():
    np.testing.assert_array_equal(flatten(ours)[path], array)
    assert flatten(ours)[path].shape == array.shape
  assert set(flatten(ours)) == set(flatten(variables()))


def test_the_inverse_is_exact():
  back = TABLE.to_authors(TABLE.to_ours(state(), variables()))
  assert set(back) == set(state())
  for key, array in state().items():
    np.testing.assert_array_equal(back[key], array)
    assert back[key].flags["C_CONTIGUOUS"]


def test_the_report_has_a_row_per_key():
  rows = TABLE.convert(state(), variables())[1]
  told = {row.key: (row.path, row.shape, row.transform) for row in rows}
  assert set(told) == set(state())
  assert told["layers.11.fc.weight"] == (
    "params/block_11/fc/kernel",
    (4, 3),
    LINEAR.name,
  )
  assert told["scale"] == ("params/scale", (), KEEP.name)


def test_dtypes_follow_the_model():
  halves = {key: array.astype(np.float16) for key, array in state().items()}
  ours = TABLE.to_ours(halves, variables())
  assert {array.dtype for array in flatten(ours).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"head.weight": np.zeros(3)},
      "hold 'head.weight', which the conversion table does",
    ),
    ({"module.scale": np.zeros(())}, "of a wrapper"),
    ({"layers.3.fc.bias": np.zeros(3)}, "'layers.3.fc.bias'.*has no place"),
    ({"scale": None}, "lack 'scale'"),
    (
      {"layers.0.fc.weight": None, "layers.11.fc.bias": None},
      "lack 'layers.0.fc.weight'",
    ),
    (
      {"layers.0.fc.weight": np.zeros((5, 3))},
      r"'layers.0.fc.weight' of shape \[5, 3\]",
    ),
    ({"stem.weight": np.zeros((7, 2, 4, 3))}, r"'stem.weight'.*\[3, 4, 2, 7\]"),
  ],
)
def test_what_disagrees_is_named(change, message):
  changed = {**state(), **change}
  changed = {key: array for key, array in changed.items() if array is not None}
  with pytest.raises(TokzooError, match=message) as caught:
    TABLE.to_ours(changed, variables())
  assert "\n" not in str(caught.value)


def test_many_missing_keys_are_counted():
  with pytest.raises(TokzooError, match="and 2 more"):
    TABLE.to_ours({}, variables())


def test_ignored_keys_are_left_out():
  noted = {**state(), "bn.num_batches_tracked": np.zeros((), np.int64)}
  assert fingerprint(TABLE.to_ours(noted, variables())) == fingerprint(variables())


def test_a_parameter_without_a_rule_has_no_inverse():
  extra = {"params": {**variables()["params"], "new": np.zeros(2)}}
  with pytest.raises(TokzooError, match="the model has 'params/new'"):
    TABLE.to_authors(extra)


def test_a_systems_table_there_and_back():
  ours = random_variables(TOKENIZER)
  again = WEIGHTS.to_ours(WEIGHTS.to_authors(ours), ours)
  assert fingerprint(again) == fingerprint(ours)


def test_fingerprints_tell_values_shapes_names_and_dtypes_apart():
  base = {"params": {"a": np.zeros((2, 3), np.float32)}}
  others = [
    {"params": {"a": np.zeros((3, 2), np.float32)}},
    {"params": {"b": np.zeros((2, 3), np.float32)}},
    {"params": {"a": np.zeros((2, 3), np.int32)}},
    {"params": {"a": np.eye(2, 3, dtype=np.float32)}},
    {"codebook": {"a": np.zeros((2, 3), np.float32)}},
  ]
  prints = {fingerprint(tree) for tree in [base, *others]}
  assert len(prints) == 1 + len(others)
  assert fingerprint(base) == fingerprint(
    {"params": {"a": np.zeros((2, 3), np.float32)}}
  )
