"""Every system of the zoo: a plain table from slug to what it is and where it lies.

Modules are named, not imported, so that listing the zoo does not load it.
"""

import dataclasses
import importlib
from typing import Any, Literal

from tokzoo.errors import unknown


@dataclasses.dataclass(frozen=True)
class Part:
  """One network of a system.

  kind:            what it is
  config:          "module:Class" of its config, whose `build()` makes the module
  presets:         "module:NAME" of its published configs by name
  weights:         "module:NAME" of its conversion table
  flax:            "module:name" of a function from a config to the table of Flax checkpoints,
                   whose numbered keys depend on it; None: nobody published one
  check_metadata:  "module:FUNCTION" from a preset, the metadata of a published file (strings by
                   name, {} where it has none) and the file's name to the file's config; it
                   raises TokzooError where they contradict. None: the preset is the config
  """

  kind: Literal["tokenizer", "generator"]
  config: str
  presets: str
  weights: str
  flax: str | None = None
  check_metadata: str | None = None


@dataclasses.dataclass(frozen=True)
class System:
  """A published system.

  slug:        its name everywhere
  title:       what it is, in a line
  kind:        tokenizer, generator, both, quantizers, or a benchmark
  modality:    image, sound, video, ..., or all
  paper:       arXiv id
  experiment:  its file under experiments/
  parts:       its networks by name; quantizers are parts of tokenizers and have none, nor has a
               benchmark
  """

  slug: str
  title: str
  kind: str
  modality: str
  paper: str
  experiment: str
  parts: dict[str, Part]


def _part(
  kind: Literal["tokenizer", "generator"],
  module: str,
  config: str,
  prefix: str = "",
  has_flax: bool = False,
) -> Part:
  """A part whose module names its presets PRESETS and its table WEIGHTS, or with a prefix."""
  presets, weights = f"{module}:{prefix}PRESETS", f"{module}:{prefix}WEIGHTS"
  flax = f"{module}:flax_weights" if has_flax else None
  return Part(kind, f"{module}:{config}", presets, weights, flax)


_AUDIO = "tokzoo.tokenizers.audio"
_BAE = "tokzoo.tokenizers.image.instella_t2i"
_IMAGE = "tokzoo.tokenizers.image"
_GENERATORS = "tokzoo.generators.instella_t2i"
_MASKGIT = "tokzoo.generators.maskgit"
_MAGVIT2 = "tokzoo.generators.open_magvit2"

_ALL = (
  System(
    slug="instella-t2i",
    title="Instella-T2I: 1D binary image tokens, with a diffusion and an AR generator",
    kind="tokenizer + generators",
    modality="image",
    paper="2506.21022",
    experiment="image/instella_t2i.py",
    parts={
      "tokenizer": Part(
        "tokenizer", f"{_BAE}:Config", f"{_BAE}:PRESETS", f"{_BAE}:WEIGHTS"
      ),
      "diffusion": Part(
        "generator",
        f"{_GENERATORS}.diffusion:DiffusionConfig",
        f"{_GENERATORS}.diffusion:PRESETS",
        f"{_GENERATORS}.diffusion:DIFFUSION_WEIGHTS",
      ),
      "ar": Part(
        "generator",
        f"{_GENERATORS}.autoregressive:ARConfig",
        f"{_GENERATORS}.autoregressive:PRESETS",
        f"{_GENERATORS}.autoregressive:AR_WEIGHTS",
      ),
    },
  ),
  System(
    slug="titok",
    title="TiTok: an image as 32 to 256 tokens of a ViT, without a grid",
    kind="tokenizer",
    modality="image",
    paper="2406.07550",
    experiment="image/titok.py",
    parts={
      "tokenizer": Part(
        "tokenizer",
        f"{_IMAGE}.titok:Config",
        f"{_IMAGE}.titok:PRESETS",
        f"{_IMAGE}.titok:WEIGHTS",
      ),
    },
  ),
  System(
    slug="maskgit-vqgan",
    title="MaskGIT's VQGAN: a 16 x 16 grid of 1,024 codes, convolutions alone",
    kind="tokenizer",
    modality="image",
    paper="2202.04200",
    experiment="image/maskgit_vqgan.py",
    parts={
      "tokenizer": Part(
        "tokenizer",
        f"{_IMAGE}.maskgit_vqgan:Config",
        f"{_IMAGE}.maskgit_vqgan:PRESETS",
        f"{_IMAGE}.maskgit_vqgan:WEIGHTS",
        f"{_IMAGE}.maskgit_vqgan:flax_weights",
      ),
    },
  ),
  System(
    slug="one-d-piece",
    title="One-D-Piece: TiTok whose tokens decode from any prefix",
    kind="tokenizer",
    modality="image",
    paper="2501.10064",
    experiment="image/one_d_piece.py",
    parts={
      "tokenizer": Part(
        "tokenizer",
        f"{_IMAGE}.one_d_piece:Config",
        f"{_IMAGE}.one_d_piece:PRESETS",
        f"{_IMAGE}.one_d_piece:WEIGHTS",
      ),
    },
  ),
  System(
    slug="maskgit",
    title="MaskGIT, and TiTok's ImageBert and UViT: all tokens of an image in few steps",
    kind="generators",
    modality="image",
    paper="2202.04200",
    experiment="image/maskgit.py",
    parts={
      "original": _part(
        "generator", f"{_MASKGIT}.original", "MaskGITConfig", has_flax=True
      ),
      "imagebert": _part("generator", f"{_MASKGIT}.imagebert", "ImageBertConfig"),
      "uvit": _part("generator", f"{_MASKGIT}.uvit", "UViTConfig"),
    },
  ),
  System(
    slug="rar",
    title="RAR: autoregressive generator trained on random orders, annealed to raster",
    kind="generator",
    modality="image",
    paper="2411.00776",
    experiment="image/rar.py",
    parts={"generator": _part("generator", "tokzoo.generators.rar", "Config")},
  ),
  System(
    slug="llamagen",
    title="LlamaGen: a VQGAN and Llama over its tokens, for classes or captions",
    kind="tokenizer + generator",
    modality="image",
    paper="2406.06525",
    experiment="image/llamagen.py",
    parts={
      "tokenizer": _part("tokenizer", f"{_IMAGE}.llamagen", "Config"),
      "ar": _part("generator", "tokzoo.generators.llamagen", "Config"),
    },
  ),
  System(
    slug="open-magvit2",
    title="Open-MAGVIT2 and IBQ: codebooks of 2^18 codes, and Llamas that predict them",
    kind="tokenizers + generators",
    modality="image",
    paper="2409.04410",
    experiment="image/open_magvit2.py",
    parts={
      "tokenizer": _part("tokenizer", f"{_IMAGE}.open_magvit2", "Config"),
      "ibq": _part("tokenizer", f"{_IMAGE}.open_magvit2", "IBQConfig", "IBQ_"),
      "ar": _part("generator", _MAGVIT2, "FactorizedConfig", "FACTORIZED_"),
      "ibq-ar": _part("generator", _MAGVIT2, "IBQConfig", "IBQ_"),
    },
  ),
  System(
    slug="flextok",
    title="FlexTok: 1 to 256 ordered tokens an image, decoded by a rectified flow",
    kind="tokenizers + generator",
    modality="image",
    paper="2502.13967",
    experiment="image/flextok.py",
    parts={
      "tokenizer": dataclasses.replace(
        _part("tokenizer", f"{_IMAGE}.flextok", "Config"),
        check_metadata=f"{_IMAGE}.flextok:check_metadata",
      ),
      "vae": _part("tokenizer", f"{_IMAGE}.flextok", "VAEConfig", "VAE_"),
      "ar": _part("generator", "tokzoo.generators.flextok", "Config"),
    },
  ),
  System(
    slug="karl",
    title="KARL: as many tokens as an image needs, in one pass; ALIT before it",
    kind="tokenizers",
    modality="image",
    paper="2507.07995",
    experiment="image/karl.py",
    parts={
      "tokenizer": _part("tokenizer", f"{_IMAGE}.karl", "Config"),
      "alit": _part("tokenizer", f"{_IMAGE}.karl", "ALITConfig", "ALIT_"),
    },
  ),
  System(
    slug="encodec",
    title="EnCodec: residual codebooks of sound at 1.5 to 24 kbps, causal or in stereo",
    kind="tokenizer",
    modality="sound",
    paper="2210.13438",
    experiment="audio/encodec.py",
    parts={"tokenizer": _part("tokenizer", f"{_AUDIO}.encodec", "Config")},
  ),
  System(
    slug="dac",
    title="DAC: residual codebooks searched by angle, speech to music at up to 24 kbps",
    kind="tokenizer",
    modality="sound",
    paper="2306.06546",
    experiment="audio/dac.py",
    parts={"tokenizer": _part("tokenizer", f"{_AUDIO}.dac", "Config")},
  ),
  System(
    slug="mimi",
    title="Mimi: Moshi's streaming codec, a semantic and 31 acoustic codebooks at 12.5 Hz",
    kind="tokenizer",
    modality="sound",
    paper="2410.00037",
    experiment="audio/mimi.py",
    parts={"tokenizer": _part("tokenizer", f"{_AUDIO}.mimi", "Config")},
  ),
  System(
    slug="snac",
    title="SNAC: residual codebooks at several rates, 1 to 2.6 kbps",
    kind="tokenizer",
    modality="sound",
    paper="2410.14411",
    experiment="audio/snac.py",
    parts={"tokenizer": _part("tokenizer", f"{_AUDIO}.snac", "Config")},
  ),
  System(
    slug="speechtokenizer",
    title="SpeechTokenizer: a speech codec whose first codebook is distilled from HuBERT",
    kind="tokenizer",
    modality="sound",
    paper="2308.16692",
    experiment="audio/speechtokenizer.py",
    parts={"tokenizer": _part("tokenizer", f"{_AUDIO}.speechtokenizer", "Config")},
  ),
  System(
    slug="dm-codec",
    title="DM-Codec: SpeechTokenizer distilled from a language model and a speech model",
    kind="tokenizer",
    modality="sound",
    paper="2410.15017",
    experiment="audio/dm_codec.py",
    parts={"tokenizer": _part("tokenizer", f"{_AUDIO}.dm_codec", "Config")},
  ),
  System(
    slug="wavtokenizer",
    title="WavTokenizer: one codebook, 40 or 75 tokens a second, decoded by Vocos",
    kind="tokenizer",
    modality="sound",
    paper="2408.16532",
    experiment="audio/wavtokenizer.py",
    parts={"tokenizer": _part("tokenizer", f"{_AUDIO}.wavtokenizer", "Config")},
  ),
  System(
    slug="xcodec",
    title="X-Codec: acoustic latents and HuBERT's quantized together",
    kind="tokenizer",
    modality="sound",
    paper="2408.17175",
    experiment="audio/xcodec.py",
    parts={"tokenizer": _part("tokenizer", f"{_AUDIO}.xcodec", "Config")},
  ),
  System(
    slug="flow-omni",
    title="Flow-Omni: a language model that speaks mel frames, by a flow-matching head",
    kind="generator",
    modality="sound",
    paper="2412.04917",
    experiment="audio/flow_omni.py",
    parts={"generator": _part("generator", "tokzoo.generators.flow_omni", "Config")},
  ),
  System(
    slug="discrete-audio-tokens",
    title="Discrete Audio Tokens: the codecs side by side, by the survey's metrics",
    kind="benchmark",
    modality="sound",
    paper="2506.10274",
    experiment="audio/discrete_audio_tokens.py",
    parts={},
  ),
  System(
    slug="discrete-tokenization-survey",
    title="The quantizers: VQ, RVQ, PQ, AQ, FSQ, LFQ, BSQ, anchors, and collapse remedies",
    kind="quantizers",
    modality="all",
    paper="2507.22920",
    experiment="quantizers/discrete_tokenization_survey.py",
    parts={},
  ),
)

SYSTEMS: dict[str, System] = {system.slug: system for system in _ALL}
assert len(SYSTEMS) == len(_ALL), "two systems bear one slug"


def find_system(slug: str) -> System:
  """The system of that slug.

  Raises:
    TokzooError: no such system; the nearest is suggested.
  """
  if slug not in SYSTEMS:
    raise unknown("system", slug, SYSTEMS)
  return SYSTEMS[slug]


def find_part(slug: str, part: str) -> Part:
  """The part of that name.

  Raises:
    TokzooError: no such system or part.
  """
  parts = find_system(slug).parts
  if part not in parts:
    raise unknown(f"part of {slug}", part, parts)
  return parts[part]


def resolve(address: str) -> Any:
  """The object at "module:NAME"."""
  module, name = address.split(":")
  return getattr(importlib.import_module(module), name)


def part_of_config(config: Any) -> tuple[str, str]:
  """Slug and part name whose config class this is.

  Raises:
    TokzooError: the config is of no system in the table.
  """
  cls = type(config)
  for system in SYSTEMS.values():
    for name, part in system.parts.items():
      if resolve(part.config) is cls:
        return system.slug, name
  raise unknown("config class", cls.__name__, [s.slug for s in SYSTEMS.values()])


def find_preset(name: str) -> tuple[str, str, Any]:
  """Slug, part and config of a published preset.

  Raises:
    TokzooError: no preset of that name.
  """
  known = {}
  for system in SYSTEMS.values():
    for part_name, part in system.parts.items():
      for preset, config in resolve(part.presets).items():
        known[preset] = (system.slug, part_name, config)
  if name not in known:
    raise unknown("preset", name, known)
  return known[name]
