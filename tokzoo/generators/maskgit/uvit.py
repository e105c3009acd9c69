"""UViT: the masked generator of TiTok-S-128, a transformer with long skips.

Yu et al., arXiv 2406.07550, after Bao et al., "All are Worth Words", arXiv 2209.12152. Written
from what bytedance/1d-tokenizer @ 942a96f computes (`UViTBert` of `modeling/maskgit.py`);
weights on the hub: yucornetto/generator_titok_s128_imagenet.

Sequence, ids, loss and sampler are those of `imagebert`. Of n blocks n / 2 go in, one stands
in the middle and n / 2 come out; each of the latter starts with a linear layer over [x, the
output of the matching block that went in], last in, first out. Pre-norm, no bias on queries,
keys and values, layer norms with eps 1e-5.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from tokzoo.generators.maskgit.imagebert import (
  INIT,
  MaskedConfig,
  MaskedGenerator,
  dense,
  norm,
)
from tokzoo.nn.dropout import attend_dropping, dropped
from tokzoo.nn.layers import merge_heads, split_heads
from tokzoo.weights import LINEAR, Rule, Table, linear_rules, norm_rules


@dataclasses.dataclass(frozen=True)
class UViTConfig(MaskedConfig):
  """Sizes of UViT; the defaults are those of TiTok-S-128's."""

  grid: tuple[int, ...] = (128,)
  width: int = 1024
  layers: int = 20
  mlp_width: int = 4096
  norm_eps: float = 1e-5
  dropout: float = 0.0
  """The source reads 0.1 from its recipe, and gives its blocks none."""

  def build(self) -> "UViT":
    return UViT(self)


class Block(nn.Module):
  """Pre-norm block; with a skip, x is first joined with it."""

  config: MaskedConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], skip: Float[Array, "B L D"] | None = None
  ) -> Float[Array, "B L D"]:
    c = self.config
    if skip is not None:
      x = dense(c.width, "skip_linear")(jnp.concatenate([x, skip], axis=-1))
    packed = dense(3 * c.width, "qkv", use_bias=False)(norm(c, "norm1")(x))
    q, k, v = (
      split_heads(part, c.width // c.heads) for part in jnp.split(packed, 3, axis=-1)
    )
    attended = merge_heads(attend_dropping(self, q, k, v, None, c.dropout))
    x = x + dropped(self, dense(c.width, "proj")(attended), c.dropout)
    hidden = dense(c.mlp_width, "fc1")(norm(c, "norm2")(x))
    hidden = dropped(self, nn.gelu(hidden, approximate=False), c.dropout)
    x = x + dropped(self, dense(c.width, "fc2")(hidden), c.dropout)
    return checkpoint_name(x, "block")


class UViT(MaskedGenerator):
  """The generator of TiTok-S-128 (contract: `tokzoo.contract.Generator`)."""

  config: UViTConfig

  @nn.compact
  def __call__(
    self, ids: Int[Array, "B K"], labels: Int[Array, "B"]
  ) -> Float[Array, "B K V"]:
    c = self.config
    rows = self._with_class(ids, labels)
    x = nn.Embed(c.rows, c.width, embedding_init=INIT, name="tokens")(rows)
    x = x + self.param("pos_embed", INIT, (1, c.num_tokens + 1, c.width))
    skips = []
    for i in range(c.layers // 2):
      x = Block(c, name=f"in_blocks_{i}")(x)
      skips.append(x)
    x = Block(c, name="mid_block")(x)
    for i in range(c.layers // 2):
      x = Block(c, name=f"out_blocks_{i}")(x, skips.pop())
    x = norm(c, "norm")(x)
    return dense(c.vocab, "lm_head")(x[:, 1:]).astype(jnp.float32)


PRESETS = {"titok-s128-uvit": UViTConfig()}


def _block_rules(key: str, path: str) -> tuple[Rule, ...]:
  return (
    Rule(f"{key}.attn.qkv.weight", f"{path}/qkv/kernel", LINEAR),
    *linear_rules(f"{key}.attn.proj", f"{path}/proj"),
    *linear_rules(f"{key}.mlp.fc{{n}}", f"{path}/fc{{n}}"),
    *linear_rules(f"{key}.skip_linear", f"{path}/skip_linear"),
    *norm_rules(f"{key}.norm1", f"{path}/norm1"),
    *norm_rules(f"{key}.norm2", f"{path}/norm2"),
  )


WEIGHTS = Table(
  rules=(
    Rule("embeddings.weight", "params/tokens/embedding"),
    Rule("pos_embed", "params/pos_embed"),
    *_block_rules("in_blocks.{i}", "params/in_blocks_{i}"),
    *_block_rules("mid_block", "params/mid_block"),
    *_block_rules("out_blocks.{i}", "params/out_blocks_{i}"),
    *norm_rules("norm", "params/norm"),
    *linear_rules("lm_head", "params/lm_head"),
  )
)
