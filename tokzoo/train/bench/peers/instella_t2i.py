"""The benchmark's tokenizer once more, written plainly in PyTorch.

Instella-T2I's network without resizing of its grid is a TiTok-like tokenizer: latent tokens and
patches through one ViT, a quantizer, latents and mask tokens through another. Parameters bear
the published names, so weights go over by the system's own table and both sides compute the
same loss. What a PyTorch user would take is taken: scaled_dot_product_attention, RMSNorm, the
fused AdamW.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokzoo.tokenizers.image.instella_t2i import Config, Grid, rotary_tables


class Attention(nn.Module):
  """Self-attention with normed queries and keys, and rotary positions."""

  def __init__(self, width: int, head_dim: int, eps: float):
    super().__init__()
    self.head_dim = head_dim
    self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
      nn.Linear(width, width, bias=False) for _ in range(4)
    )
    self.norm_q, self.norm_k = nn.RMSNorm(head_dim, eps), nn.RMSNorm(head_dim, eps)

  def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, length, width = x.shape

    def heads(y: Tensor) -> Tensor:
      return y.view(batch, length, -1, self.head_dim).transpose(1, 2)

    q = rotate(self.norm_q(heads(self.q_proj(x))), cos, sin)
    k = rotate(self.norm_k(heads(self.k_proj(x))), cos, sin)
    y = F.scaled_dot_product_attention(q, k, heads(self.v_proj(x)))
    return self.o_proj(y.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
  """SwiGLU."""

  def __init__(self, width: int, hidden: int):
    super().__init__()
    self.gate_proj = nn.Linear(width, hidden, bias=False)
    self.up_proj = nn.Linear(width, hidden, bias=False)
    self.down_proj = nn.Linear(hidden, width, bias=False)

  def forward(self, x: Tensor) -> Tensor:
    return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
  """Pre-norm transformer block."""

  def __init__(self, width: int, head_dim: int, ratio: float, eps: float):
    super().__init__()
    self.input_layernorm = nn.RMSNorm(width, eps)
    self.attn = Attention(width, head_dim, eps)
    self.post_attention_layernorm = nn.RMSNorm(width, eps)
    self.mlp = MLP(width, int(width * ratio))

  def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x + self.attn(self.input_layernorm(x), cos, sin)
    return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
  """Image -> latents."""

  def __init__(self, c: Config):
    super().__init__()
    self.patch_embedder = nn.Conv2d(c.channels, c.width, c.patch, c.patch)
    self.latent_tokens = nn.Parameter(0.02 * torch.randn(1, c.num_tokens, c.width))
    self.transformer_blocks = nn.ModuleList(
      Block(c.width, c.head_dim, c.mlp_ratio, c.norm_eps) for _ in range(c.layers)
    )
    self.norm_out = nn.RMSNorm(c.width, c.norm_eps)
    self.proj_out = nn.Linear(c.width, c.width)

  def forward(self, image: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    patches = self.patch_embedder(image).flatten(2).transpose(1, 2)
    latents = self.latent_tokens.expand(len(image), -1, -1)
    x = torch.cat([latents, patches], dim=1)
    for block in self.transformer_blocks:
      x = block(x, cos, sin)
    return self.proj_out(self.norm_out(x[:, : latents.shape[1]]))


class Quantizer(nn.Module):
  """m independent bits a token, drawn in training, with the straight-through gradient."""

  def __init__(self, c: Config):
    super().__init__()
    self.temperature = c.temperature
    self.proj = nn.Sequential(nn.Linear(c.width, c.bits))
    self.embed = nn.Parameter(0.02 * torch.randn(c.bits, c.width))

  def forward(self, z: Tensor) -> Tensor:
    logits = self.proj(z)
    p = logits.sigmoid()
    if self.training and self.temperature > 0:
      bits = torch.bernoulli((logits / self.temperature).sigmoid())
    else:
      bits = (p > 0.5).to(p.dtype)
    return (bits.detach() + p - p.detach()) @ self.embed


class Decoder(nn.Module):
  """Codes -> features of every patch."""

  def __init__(self, c: Config):
    super().__init__()
    self.input_layer = nn.Sequential(
      nn.RMSNorm(c.width, c.norm_eps), nn.Linear(c.width, c.decoder_width)
    )
    self.mask_tokens = nn.Parameter(0.02 * torch.randn(1, 1, c.decoder_width))
    self.transformer_blocks = nn.ModuleList(
      Block(c.decoder_width, c.decoder_head_dim, c.mlp_ratio, c.norm_eps)
      for _ in range(c.decoder_layers)
    )
    self.norm_out = nn.RMSNorm(c.decoder_width, c.norm_eps)

  def forward(self, codes: Tensor, places: int, cos: Tensor, sin: Tensor) -> Tensor:
    x = self.input_layer(codes)
    masks = self.mask_tokens.expand(len(x), places, -1)
    x = torch.cat([x, masks], dim=1)
    for block in self.transformer_blocks:
      x = block(x, cos, sin)
    return self.norm_out(x[:, codes.shape[1] :])


class Tokenizer(nn.Module):
  """The whole: images float32[B, C, H, W] in [-1, 1] to reconstructions."""

  cos: Tensor
  sin: Tensor

  def __init__(self, c: Config):
    super().__init__()
    side = c.image_size // c.patch
    self.patch, self.side = c.patch, side
    self.encoder, self.quantizer, self.decoder = Encoder(c), Quantizer(c), Decoder(c)
    self.to_pixel = nn.Linear(c.decoder_width, c.patch * c.patch * c.channels)
    span = None if c.span is None else c.span / c.patch
    for name, table in zip(("cos", "sin"), rotary_tables(c, Grid(side, side, span))):
      self.register_buffer(name, torch.from_numpy(np.array(table)), persistent=False)

  def forward(self, image: Tensor) -> Tensor:
    codes = self.quantizer(self.encoder(image, self.cos, self.sin))
    patches = self.decoder(codes, self.side * self.side, self.cos, self.sin)
    batch, side, patch = len(image), self.side, self.patch
    pixels = self.to_pixel(patches).view(batch, side, side, patch, patch, -1)
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(image.shape)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """Turns feature j with feature j + d/2."""
  first, second = x.chunk(2, dim=-1)
  return x * cos + torch.cat([-second, first], dim=-1) * sin


def make_step(
  config: Config,
  image: np.ndarray,
  weights: dict[str, np.ndarray],
  learning_rate: float,
  weight_decay: float,
  is_compiled: bool,
) -> Callable[[], float]:
  """One training step: forward, mean squared error, backward, AdamW.

  Args:
    config: of the tokenizer.
    image: float32[B, H, W, C].
    weights: by published name, as the system's table gives them.
    learning_rate, weight_decay: of AdamW.
    is_compiled: by torch.compile.

  Returns:
    A call that does a step and returns its loss.
  """
  model = Tokenizer(config)
  # NumPy views of jax arrays are read-only, which torch does not know.
  model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
  model.train()
  rows = torch.from_numpy(np.array(image.transpose(0, 3, 1, 2)))
  optimizer = torch.optim.AdamW(
    model.parameters(), learning_rate, weight_decay=weight_decay, fused=True
  )

  def loss_of(x: Tensor) -> Tensor:
    return F.mse_loss(model(x), x)

  forward: Any = torch.compile(loss_of) if is_compiled else loss_of

  def step() -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = forward(rows)
    loss.backward()
    optimizer.step()
    return loss.item()

  return step
