"""LlamaGen's tokenizer and class-conditional generator, in PyTorch."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokzoo.generators import llamagen as generator
from tokzoo.nn.decoder import llama_hidden
from tokzoo.nn.rotary import grid_rotary
from tokzoo.tokenizers.image.llamagen import Config
from tokzoo.train.bench.peers.titok import Quantizer

# ---------------------------------------------------------------- tokenizer


class ResBlock(nn.Module):
  """Norm, swish, conv, twice."""

  def __init__(self, before: int, after: int, groups: int):
    super().__init__()
    self.norm1 = nn.GroupNorm(groups, before, 1e-6)
    self.conv1 = nn.Conv2d(before, after, 3, padding=1)
    self.norm2 = nn.GroupNorm(groups, after, 1e-6)
    self.conv2 = nn.Conv2d(after, after, 3, padding=1)
    if before != after:
      self.nin_shortcut = nn.Conv2d(before, after, 1)

  def forward(self, x: Tensor) -> Tensor:
    h = self.conv1(F.silu(self.norm1(x)))
    h = self.conv2(F.silu(self.norm2(h)))
    return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
  """All places attend to all, one head."""

  def __init__(self, width: int, groups: int):
    super().__init__()
    self.norm = nn.GroupNorm(groups, width, 1e-6)
    self.q, self.k, self.v, self.proj_out = (
      nn.Conv2d(width, width, 1) for _ in range(4)
    )

  def forward(self, x: Tensor) -> Tensor:
    h = self.norm(x)
    q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return x + self.proj_out(y.reshape(x.shape))


class Resize(nn.Module):
  """Half or double the grid."""

  def __init__(self, width: int, is_down: bool):
    super().__init__()
    self.is_down = is_down
    stride, padding = (2, 0) if is_down else (1, 1)
    self.conv = nn.Conv2d(width, width, 3, stride, padding)

  def forward(self, x: Tensor) -> Tensor:
    if self.is_down:
      return self.conv(F.pad(x, (0, 1, 0, 1)))
    return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
  """Blocks at one resolution, and the way to the next."""

  def __init__(
    self, before: int, after: int, blocks: int, c: Config, last: bool, resize: str
  ):
    super().__init__()
    self.res = nn.ModuleList(
      ResBlock(after if j else before, after, c.groups) for j in range(blocks)
    )
    self.attn = nn.ModuleList(
      Attention(after, c.groups) for _ in range(blocks if last else 0)
    )
    if resize:
      setattr(self, resize, Resize(after, resize == "downsample"))
    self.resize = resize

  def forward(self, x: Tensor) -> Tensor:
    for j, block in enumerate(self.res):
      x = block(x)
      if len(self.attn):
        x = self.attn[j](x)
    return getattr(self, self.resize)(x) if self.resize else x


class Side(nn.Module):
  """Encoder or decoder."""

  def __init__(self, c: Config, is_encoder: bool):
    super().__init__()
    widths = [c.width * m for m in c.multipliers]
    deepest = widths[-1]
    middle = [
      ResBlock(deepest, deepest, c.groups),
      Attention(deepest, c.groups),
      ResBlock(deepest, deepest, c.groups),
    ]
    self.is_encoder, self.mid = is_encoder, nn.ModuleList(middle)
    first = widths[0] if is_encoder else deepest
    into, out = (c.channels, c.latent_dim) if is_encoder else (c.latent_dim, c.channels)
    self.conv_in = nn.Conv2d(into, first, 3, padding=1)
    order = widths if is_encoder else widths[::-1]
    resize = "downsample" if is_encoder else "upsample"
    levels, before = [], first
    for i, width in enumerate(order):
      is_last = i == len(order) - 1
      has_attention = is_last if is_encoder else i == 0
      blocks = c.blocks + (not is_encoder)
      levels.append(
        Level(before, width, blocks, c, has_attention, "" if is_last else resize)
      )
      before = width
    self.conv_blocks = nn.ModuleList(levels)
    self.norm_out = nn.GroupNorm(c.groups, before, 1e-6)
    self.conv_out = nn.Conv2d(before, out, 3, padding=1)

  def forward(self, x: Tensor) -> Tensor:
    x = self.conv_in(x)
    levels, middle = list(self.conv_blocks), list(self.mid)
    for part in (levels + middle) if self.is_encoder else (middle + levels):
      x = part(x)
    return self.conv_out(F.silu(self.norm_out(x)))


class VQ(nn.Module):
  """The whole: images float32[B, C, H, W] in [-1, 1]."""

  def __init__(self, c: Config):
    super().__init__()
    self.encoder, self.decoder = Side(c, True), Side(c, False)
    self.quant_conv = nn.Conv2d(c.latent_dim, c.code_dim, 1)
    self.post_quant_conv = nn.Conv2d(c.code_dim, c.latent_dim, 1)
    self.quantize = Quantizer(c.num_codes, c.code_dim, c.is_unit_norm)

  def encode(self, image: Tensor) -> Tensor:
    return self.quantize.ids(self._latents(image)).flatten(1)

  def decode(self, ids: Tensor) -> Tensor:
    side = int(ids.shape[1] ** 0.5)
    codes = self.quantize.embedding(ids)
    if self.quantize.is_unit_norm:
      codes = F.normalize(codes, dim=-1)
    return self._image(codes.view(len(ids), side, side, -1))

  def forward(self, image: Tensor) -> Tensor:
    """The training loss: squared error and the quantizer's."""
    codes, loss = self.quantize(self._latents(image))
    return F.mse_loss(self._image(codes), image) + loss

  def _latents(self, image: Tensor) -> Tensor:
    return self.quant_conv(self.encoder(image)).permute(0, 2, 3, 1)

  def _image(self, codes: Tensor) -> Tensor:
    return self.decoder(self.post_quant_conv(codes.permute(0, 3, 1, 2)))


# ---------------------------------------------------------------- generator


class LlamaAttention(nn.Module):
  """Rotary attention over a cache of all places."""

  def __init__(self, c: generator.Config):
    super().__init__()
    self.heads = c.heads
    self.wqkv = nn.Linear(c.width, 3 * c.width, bias=False)
    self.wo = nn.Linear(c.width, c.width, bias=False)
    self.keys = self.values = torch.empty(0)

  def forward(self, x: Tensor, cos: Tensor, sin: Tensor, place: int) -> Tensor:
    batch, length, width = x.shape
    parts = self.wqkv(x).view(batch, length, 3, self.heads, -1).unbind(2)
    q, k = turn(parts[0], cos, sin), turn(parts[1], cos, sin)
    q, k, v = (y.transpose(1, 2) for y in (q, k, parts[2]))
    end = place + length
    self.keys[:, :, place:end], self.values[:, :, place:end] = k, v
    y = F.scaled_dot_product_attention(
      q, self.keys[:, :, :end], self.values[:, :, :end], is_causal=length > 1
    )
    return self.wo(y.transpose(1, 2).reshape(batch, length, width))


class SwiGLU(nn.Module):
  """W2 (silu(W1 x) * W3 x)."""

  def __init__(self, width: int, hidden: int):
    super().__init__()
    self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
    self.w2 = nn.Linear(hidden, width, bias=False)

  def forward(self, x: Tensor) -> Tensor:
    return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LlamaBlock(nn.Module):
  """Pre-norm block."""

  def __init__(self, c: generator.Config):
    super().__init__()
    self.attention = LlamaAttention(c)
    self.feed_forward = SwiGLU(c.width, llama_hidden(c.width, c.multiple_of))
    self.attention_norm = nn.RMSNorm(c.width, c.norm_eps)
    self.ffn_norm = nn.RMSNorm(c.width, c.norm_eps)

  def forward(self, x: Tensor, cos: Tensor, sin: Tensor, place: int) -> Tensor:
    x = x + self.attention(self.attention_norm(x), cos, sin, place)
    return x + self.feed_forward(self.ffn_norm(x))


class LabelTable(nn.Module):
  """A row per class, and one for none."""

  def __init__(self, classes: int, width: int):
    super().__init__()
    self.embedding_table = nn.Embedding(classes + 1, width)


class GPT(nn.Module):
  """The class-conditional generator, with its cache."""

  def __init__(self, c: generator.Config):
    super().__init__()
    self.config = c
    self.tok_embeddings = nn.Embedding(c.vocab, c.width)
    self.cls_embedding = LabelTable(int(c.num_classes or 0), c.width)
    blocks = [LlamaBlock(c) for _ in range(c.layers)]
    self.layers = nn.ModuleList(blocks)
    self.caches = [block.attention for block in blocks]
    self.norm = nn.RMSNorm(c.width, c.norm_eps)
    self.output = nn.Linear(c.width, c.vocab, bias=False)
    table = grid_rotary(c.grid, c.grid, c.width // c.heads, 1, c.rope_theta)
    self.cos, self.sin = (torch.from_numpy(np.array(t)) for t in (table.cos, table.sin))

  def forward(self, x: Tensor, place: int) -> Tensor:
    """Logits of the token after `place`."""
    rows = slice(place, place + x.shape[1])
    for layer in self.layers:
      x = layer(x, self.cos[rows], self.sin[rows], place)
    return self.output(self.norm(x[:, -1]))

  def sample(self, labels: Tensor, guidance: float) -> Tensor:
    """Greedy tokens [B, N] (what both sides draw alike), guided."""
    c = self.config
    none = torch.full_like(labels, int(c.num_classes or 0))
    both = torch.cat([labels, none])
    shape = len(both), c.heads, c.num_tokens + 1, c.width // c.heads
    for attention in self.caches:
      attention.keys, attention.values = torch.zeros(2, *shape)
    x, ids = self.cls_embedding.embedding_table(both)[:, None], []
    for place in range(c.num_tokens):
      towards, away = self(x, place).chunk(2)
      ids.append((away + guidance * (towards - away)).argmax(-1))
      x = self.tok_embeddings(torch.cat([ids[-1], ids[-1]]))[:, None]
    return torch.stack(ids, 1)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """Turns each pair of neighbouring features of [B, L, H, d]."""
  a, b = x[..., 0::2], x[..., 1::2]
  cos, sin = cos[:, None], sin[:, None]
  return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
