"""FlexTok's published files say what they are: their Hydra config, held against the preset."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import tokzoo
from tests.models import random_variables
from tests.tokenizers.test_flextok import WITH_VAE
from tokzoo.cli.converting import from_authors
from tokzoo.errors import TokzooError
from tokzoo.tokenizers.image import flextok
from tokzoo.train import from_json
from tokzoo.weights import write_safetensors
from tokzoo.weights.checkpoint import read_checkpoint

Said = dict[str, Any]


def hydra() -> Said:
  """The config of `WITH_VAE` as the source builds it, as far as it is read and a little more."""
  transformer = {"dim": 16, "depth": 1, "head_dim": 8, "mlp_ratio": 4.0}
  return {
    "_target_": "flextok.flextok_wrapper.FlexTok",
    "vae": {"latent_channels": 2, "scaling_factor": 0.13025, "hf_hub_path": None},
    "encoder": {
      "_target_": "flextok.model.utils.wrappers.SequentialModuleDictWrapper",
      "module_dict": {
        "enc_patch_emb": {"patch_sizes": [1, 1], "channels_in": 2, "dim": 16},
        "enc_register_module": {"dim": 16, "n_min": 4, "n_max": 4},
        "enc_transformer": transformer,
      },
    },
    "decoder": {
      "module_dict": {
        "dec_nested_dropout": {"dim": 16, "size_sampling_mode": "uniform"},
        "dec_latent_dropout": {"dim": 16, "dropout_prob": 0.2},
        "dec_noise_patch_emb": {"patch_sizes": [1, 1], "channels_in": 2, "dim": 16},
        "dec_time_embedder": {"dim": 16, "frequency_embedding_size": 8}
        | {"max_timestep": 1.0},
        "dec_transformer": transformer | {"adaLN_expansion": 2},
      }
    },
    "regularizer": {"levels": [8, 5], "drop_quant_p": 0.0},
    "pipeline": {"_partial_": True, "out_channels": 2},
  }


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes a file of the preset "tiny-flextok" in the published layout."""
  monkeypatch.setitem(flextok.PRESETS, "tiny-flextok", WITH_VAE)
  monkeypatch.setenv("TOKZOO_CACHE", str(tmp_path / "cache"))

  def write(said: Said) -> Path:
    path = tmp_path / "model.safetensors"
    state = flextok.WEIGHTS.to_authors(random_variables(WITH_VAE))
    metadata = {name: str(value) for name, value in said.items()}
    write_safetensors(path, state, metadata)
    return path

  return write


def test_a_file_that_says_what_the_preset_says(write):
  assert tokzoo.load(write(hydra()), preset="tiny-flextok").config == WITH_VAE


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}], ids=("none", "torch's"))
def test_a_file_that_says_nothing(write, metadata):
  assert tokzoo.load(write(metadata), preset="tiny-flextok").config == WITH_VAE


def test_what_no_tensor_shows_is_the_files(write, tmp_path):
  said = hydra()
  said["vae"]["scaling_factor"] = 0.5
  said["regularizer"]["levels"] = [5, 8]
  modules = said["decoder"]["module_dict"]
  modules["dec_time_embedder"]["max_timestep"] = 2.0
  modules["dec_nested_dropout"]["size_sampling_mode"] = "pow2"
  modules["dec_latent_dropout"]["dropout_prob"] = 0.1
  vae = dataclasses.replace(WITH_VAE.vae, scale=0.5)
  wanted = dataclasses.replace(
    WITH_VAE, vae=vae, levels=(5, 8), max_time=2.0, dropout="pow2", null_rate=0.1
  )
  path = write(said)
  for _ in range(2):  # converted, then from the cache
    assert tokzoo.load(path, preset="tiny-flextok").config == wanted
  # Nor does `tokzoo convert` lose it.
  out = tmp_path / "ours.safetensors"
  from_authors(path, out, "tiny-flextok", None, None)
  assert from_json(read_checkpoint(out)[1]["config"]) == wanted


def test_a_time_embedder_that_names_no_longest_time_has_the_sources(write):
  said = hydra()
  del said["decoder"]["module_dict"]["dec_time_embedder"]["max_timestep"]
  assert tokzoo.load(write(said), preset="tiny-flextok").config.max_time == 1000.0


@pytest.mark.parametrize(
  ("place", "value", "message"),
  [
    (
      ("encoder", "module_dict", "enc_transformer", "depth"),
      2,
      r"^model.safetensors says that its encoder.module_dict.enc_transformer.depth is 2, but "
      r"the preset has 1: choose the preset that the file was made with\.$",
    ),
    (("encoder", "module_dict", "enc_register_module", "n_max"), 8, "is 8, but"),
    (("decoder", "module_dict", "dec_transformer", "head_dim"), 4, "is 4, but"),
    (("vae", "latent_channels"), 4, "vae.latent_channels is 4, but the preset has 2"),
    (("regularizer", "levels"), [8, 5, 5], r"are \[8, 5, 5\], but .* have 2 features"),
  ],
)
def test_a_file_of_another_preset(write, place, value, message):
  said = found = hydra()
  for key in place[:-1]:
    found = found[key]
  found[place[-1]] = value
  with pytest.raises(TokzooError, match=message):
    tokzoo.load(write(said), preset="tiny-flextok")


def test_what_cannot_be_read_is_said(write):
  said = hydra() | {"vae": "{scaling_factor: *anchor}"}
  with pytest.warns(
    UserWarning, match=r"says of its vae what cannot be read.*\*anchor"
  ):
    config = tokzoo.load(write(said), preset="tiny-flextok").config
  assert config == WITH_VAE
