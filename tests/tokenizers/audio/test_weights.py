"""The published weights of the codecs at full size, by their keys and shapes; other layouts."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.dac import original_config
from tests.parity.encodec import make_config as encodec_config
from tests.parity.instella_t2i import authors_state
from tests.parity.mimi import make_config as mimi_config
from tests.parity.speechtokenizer import make_config as speech_config
from tests.parity.wavtokenizer import make_config as wav_config
from tokzoo.errors import TokzooError
from tokzoo.files import read_safetensors
from tokzoo.hub.catalog import catalog
from tokzoo.tokenizers.audio import (
  dac,
  dm_codec,
  encodec,
  mimi,
  snac,
  speechtokenizer,
  wavtokenizer,
  xcodec,
)
from tokzoo.weights import Table, WeightNorm, flatten

DATA = Path(__file__).parents[2] / "parity" / "data"
LISTS = json.loads((DATA / "audio-codecs-keys.json").read_text())
LISTS = {
  name: {
    key: tuple(int(side) for side in shape.split("x")) if shape else ()
    for key, shape in shapes.items()
  }
  for name, shapes in LISTS.items()
  if name != "note"
}
MODELS = {
  "encodec-24khz": (encodec, "encodec-24khz"),
  "encodec-48khz": (encodec, "encodec-48khz"),
  "dac-hf-16khz": (dac, "dac-16khz"),
  "dac-hf-24khz": (dac, "dac-24khz"),
  "dac-hf-44khz": (dac, "dac-44khz"),
  "dac-original-24khz": (dac, "dac-24khz"),
  "mimi": (mimi, "mimi"),
  "snac-24khz": (snac, "snac-24khz"),
  "snac-32khz": (snac, "snac-32khz"),
  "speechtokenizer": (speechtokenizer, "speechtokenizer-hubert-avg"),
  "dm-codec": (dm_codec, "dm-codec"),
}


MODULES = (dac, dm_codec, encodec, mimi, snac, speechtokenizer, wavtokenizer, xcodec)


def shapes_of(config):
  """Our variables of a model, without making them."""
  x = jax.ShapeDtypeStruct((1, 4 * config.hop, config.channels), jnp.float32)
  return jax.eval_shape(config.build().init, jax.random.key(0), x)


def ignored(table: Table, key: str) -> bool:
  return any(re.fullmatch(pattern, key) for pattern in table.ignore)


def test_every_list_has_a_model():
  assert set(MODELS) == set(LISTS)


@pytest.mark.parametrize("name", LISTS)
def test_full_size_keys_map_completely(name):
  module, preset = MODELS[name]
  table, like = module.WEIGHTS, shapes_of(module.PRESETS[preset])
  state = {
    key: np.broadcast_to(np.zeros((), np.float32), shape)
    for key, shape in LISTS[name].items()
  }
  # Every key is known, fits, and none is missing: all three are errors.
  found, report = table.convert(state, like)
  assert {path: leaf.shape for path, leaf in flatten(found).items()} == {
    path: leaf.shape for path, leaf in flatten(like).items()
  }
  assert len(report) == len(flatten(like))


@pytest.mark.parametrize("name", [n for n in LISTS if n != "dac-original-24khz"])
def test_what_is_written_has_the_published_keys(name):
  module, preset = MODELS[name]
  table = module.WEIGHTS
  written = table.published_shapes(shapes_of(module.PRESETS[preset]))
  assert written == {k: s for k, s in LISTS[name].items() if not ignored(table, k)}


@pytest.mark.parametrize(
  ("module", "preset", "millions"),
  [
    (encodec, "encodec-32khz", 56.9),
    (snac, "snac-44khz", 54.5),
    # What is published counts EnCodec's decoder, 8.85 M, which is not used.
    (wavtokenizer, "wavtokenizer-75", 80.6 - 8.85),
    (wavtokenizer, "wavtokenizer-40", 80.9 - 8.85),
  ],
)
def test_sizes_without_a_list_are_the_published_ones(module, preset, millions):
  """Mousavi et al., arXiv 2506.10274, table 2; SNAC's README."""
  params = shapes_of(module.PRESETS[preset])["params"]
  found = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
  assert found == pytest.approx(millions, abs=0.1)


def test_the_catalog_names_every_published_checkpoint():
  known = {entry.preset for entry in catalog().values()}
  presets = set().union(*(module.PRESETS for module in MODULES))
  assert presets <= known


def test_published_rates_of_the_catalog_are_those_of_the_presets():
  presets = {k: c for module in MODULES for k, c in module.PRESETS.items()}
  entries = [e for e in catalog().values() if "published_kbps" in e.metrics]
  assert len(entries) > 5
  for entry in entries:
    rates = presets[entry.preset].rates_kbps
    kbps = entry.metrics["published_kbps"]
    # As printed, some to one digit and SNAC's cut off.
    assert any(abs(kbps - rate) < 0.05 for rate in rates), entry.name


def fixture(name: str):
  tensors, metadata = read_safetensors(DATA / f"{name}.safetensors", "fixture")
  return authors_state(tensors), json.loads(metadata["config"])


def assert_same(a, b) -> None:
  ours, theirs = (sorted(flatten(tree).items()) for tree in (a, b))
  for (path, x), (other, y) in zip(ours, theirs, strict=True):
    assert path == other
    np.testing.assert_allclose(x, y, atol=1e-6, err_msg=path)


TINY = {
  "encodec-24khz-causal": (encodec.WEIGHTS, encodec_config),
  "encodec-48khz-noncausal": (encodec.WEIGHTS, encodec_config),
  "dac-original-tiny": (dac.WEIGHTS, original_config),
  "mimi-tiny": (mimi.weights(2), mimi_config),
  "speechtokenizer-tiny-snake": (
    speechtokenizer.WEIGHTS,
    lambda config: speech_config(speechtokenizer, config),
  ),
}


@pytest.mark.parametrize("name", TINY)
def test_written_and_read_again(name):
  table, make = TINY[name]
  state, config = fixture(name)
  like = shapes_of(make(config))
  variables = table.to_ours(state, like)
  assert_same(table.to_ours(table.to_authors(variables), like), variables)


def to_original_encodec(key: str) -> str:
  """transformers' names to those of EnCodec's own .th files."""
  side = key.split(".")[0]
  if side == "quantizer":
    key = key.replace("quantizer.layers", "quantizer.vq.layers")
    return key.replace(".codebook.", "._codebook.")
  key = key.replace(f"{side}.layers.", f"{side}.model.")
  if re.match(r"decoder\.model\.[36]\.", key):
    return key.replace(".conv.", ".convtr.convtr.").replace(".norm.", ".convtr.norm.")
  return re.sub(r"\.norm\.", ".conv.norm.", key.replace(".conv.", ".conv.conv."))


@pytest.mark.parametrize("name", ["encodec-24khz-causal", "encodec-48khz-noncausal"])
def test_encodec_in_its_own_names(name):
  state, config = fixture(name)
  like = shapes_of(encodec_config(config))
  renamed = {to_original_encodec(key): array for key, array in state.items()}
  assert "decoder.model.3.convtr.convtr.bias" in renamed
  assert_same(
    encodec.WEIGHTS.to_ours(renamed, like), encodec.WEIGHTS.to_ours(state, like)
  )


def test_the_other_form_of_weight_norm():
  state, config = fixture("encodec-24khz-causal")
  like = shapes_of(encodec_config(config))
  forms = {"weight_g": "original0", "weight_v": "original1"}
  newer = {
    re.sub(r"weight_[gv]$", lambda m: f"parametrizations.weight.{forms[m[0]]}", key): x
    for key, x in state.items()
  }
  assert any(key.endswith("original1") for key in newer)
  assert_same(
    encodec.WEIGHTS.to_ours(newer, like), encodec.WEIGHTS.to_ours(state, like)
  )


def test_weight_norm_is_the_published_formula_over_any_axis():
  draw = np.random.default_rng(0)
  v = draw.normal(size=(4, 3, 5)).astype(np.float32)
  for axis in (0, 2):
    g = draw.normal(size=[n if i == axis else 1 for i, n in enumerate(v.shape)])
    g = g.astype(np.float32)
    axes = tuple(i for i in range(3) if i != axis)
    expected = g * v / np.sqrt((v.astype(np.float64) ** 2).sum(axes, keepdims=True))
    state = {"conv.weight_g": g, "conv.weight_v": v, "conv.bias": v[0, 0]}
    folded = WeightNorm().to_ours(state)
    assert set(folded) == {"conv.weight", "conv.bias"}
    np.testing.assert_allclose(folded["conv.weight"], expected, rtol=1e-6)


def test_half_a_weight_norm_is_refused():
  state, config = fixture("encodec-24khz-causal")
  del state["encoder.layers.0.conv.weight_g"]
  with pytest.raises(TokzooError, match=r"hold 'encoder\.layers\.0\.conv\.weight_v'"):
    encodec.WEIGHTS.to_ours(state, shapes_of(encodec_config(config)))


def to_kyutai(state, heads: int):
  """transformers' Mimi in kyutai's names, with its stacked and interleaved attention."""
  told = {}
  for key, array in state.items():
    if re.search(r"self_attn\.[kv]_proj", key):
      continue
    if key.endswith("self_attn.q_proj.weight"):
      rows = []
      for name in "qkv":
        part = state[key.replace("q_proj", f"{name}_proj")]
        if name != "v":
          part = part.reshape(heads, 2, -1, part.shape[1]).swapaxes(1, 2)
        rows.append(part.reshape(-1, part.shape[-1]))
      key = key.replace("q_proj.weight", "in_proj_weight")
      array = np.concatenate(rows)
    for old, new in (
      ("self_attn.o_proj", "self_attn.out_proj"),
      ("mlp.fc", "linear"),
      ("input_layernorm", "norm1"),
      ("post_attention_layernorm", "norm2"),
      ("self_attn_layer_scale", "layer_scale_1"),
      ("mlp_layer_scale", "layer_scale_2"),
      ("_transformer.", "_transformer.transformer."),
      ("semantic_residual_vector_quantizer.layers", "rvq_first.vq.layers"),
      ("semantic_residual_vector_quantizer", "rvq_first"),
      ("acoustic_residual_vector_quantizer.layers", "rvq_rest.vq.layers"),
      ("acoustic_residual_vector_quantizer", "rvq_rest"),
      (".codebook.initialized", "._codebook._initialized"),
      (".codebook.embed_sum", "._codebook.embedding_sum"),
      (".codebook.", "._codebook."),
    ):
      key = key.replace(old, new)
    if re.match(r"(en|de)coder\.layers", key):
      key = to_original_encodec(key).replace(".layers.", ".model.")
      if re.match(r"decoder\.model\.[25]\.", key):
        key = key.replace("conv.conv", "convtr.convtr")
      if re.match(r"decoder\.model\.[36]\.", key):
        key = key.replace("convtr.convtr", "conv.conv")
    key = key.replace("downsample.conv", "downsample.conv.conv.conv")
    told[key.replace("upsample.conv", "upsample.convtr.convtr.convtr")] = array
  return told


def test_mimi_in_kyutais_names():
  state, config = fixture("mimi-tiny")
  table, like = mimi.weights(2), shapes_of(mimi_config(config))
  theirs = to_kyutai(state, heads=2)
  for key in (
    "encoder.model.1.block.1.conv.conv.weight",
    "decoder.model.2.convtr.convtr.weight",
    "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight",
    "upsample.convtr.convtr.convtr.weight",
    "quantizer.rvq_rest.vq.layers.2._codebook.embedding_sum",
  ):
    assert key in theirs
  assert not set(theirs) & set(state)
  assert_same(table.to_ours(theirs, like), table.to_ours(state, like))


def test_a_wavtokenizer_checkpoint_with_all_that_lightning_keeps():
  _, config = fixture("wavtokenizer-decoder")
  table, like = wavtokenizer.WEIGHTS, shapes_of(wav_config(config))
  draw = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), like
  )
  state = table.to_authors(variables)
  assert "feature_extractor.encodec.encoder.model.0.conv.conv.weight_v" in state
  more = {
    "feature_extractor.encodec.decoder.model.0.conv.conv.bias": np.zeros(3),
    "head.istft.window": np.hanning(33)[:-1],
    "multiperioddisc.discriminators.0.convs.0.bias": np.zeros(3),
  }
  assert_same(table.to_ours({**state, **more}, like), table.to_ours(state, like))
  with pytest.raises(TokzooError, match=r"hold 'backbone\.other'"):
    table.to_ours({**state, "backbone.other": np.zeros(3)}, like)
