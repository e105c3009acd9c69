"""TiTok that makes pixels (not the legacy ones), in PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokzoo.tokenizers.image.titok import Config, Size


class Attention(nn.Module):
  """Packed projections, as nn.MultiheadAttention keeps them."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
    self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
    self.out_proj = nn.Linear(width, width)

  def forward(self, x: Tensor) -> Tensor:
    batch, length, width = x.shape
    packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
    parts = packed.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
    return self.out_proj(y.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
  """Exact GELU, four times as wide."""

  def __init__(self, width: int, hidden: int):
    super().__init__()
    self.c_fc, self.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)

  def forward(self, x: Tensor) -> Tensor:
    return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
  """Pre-norm transformer block."""

  def __init__(self, size: Size, ratio: float):
    super().__init__()
    self.ln_1, self.ln_2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
    self.attn = Attention(size.width, size.heads)
    self.mlp = MLP(size.width, int(size.width * ratio))

  def forward(self, x: Tensor) -> Tensor:
    x = x + self.attn(self.ln_1(x))
    return x + self.mlp(self.ln_2(x))


class Side(nn.Module):
  """What encoder and decoder have alike."""

  def __init__(self, c: Config, size: Size):
    super().__init__()
    width = size.width
    self.class_embedding = nn.Parameter(torch.empty(1, width))
    self.positional_embedding = nn.Parameter(torch.empty(c.side**2 + 1, width))
    self.latent_token_positional_embedding = nn.Parameter(
      torch.empty(c.num_tokens, width)
    )
    self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
    self.transformer = nn.ModuleList(
      Block(size, c.mlp_ratio) for _ in range(size.layers)
    )

  def through(self, places: Tensor, latents: Tensor) -> Tensor:
    """One class token, the places of the grid and the latents through all blocks."""
    one = self.class_embedding.expand(len(places), 1, -1)
    x = torch.cat([one, places], 1) + self.positional_embedding
    count = latents.shape[1]
    latents = latents + self.latent_token_positional_embedding[:count]
    x = self.ln_pre(torch.cat([x, latents], 1))
    for block in self.transformer:
      x = block(x)
    return x


class Encoder(Side):
  """Image -> latents."""

  def __init__(self, c: Config):
    super().__init__(c, c.encoder)
    self.patch_embed = nn.Conv2d(c.channels, c.encoder.width, c.patch, c.patch)
    self.conv_out = nn.Conv2d(c.encoder.width, c.code_dim, 1)

  def forward(self, image: Tensor, latent_tokens: Tensor) -> Tensor:
    patches = self.patch_embed(image).flatten(2).transpose(1, 2)
    latents = latent_tokens.expand(len(image), -1, -1)
    x = self.through(patches, latents)[:, -latents.shape[1] :]
    return self.conv_out(self.ln_post(x).transpose(1, 2)[..., None])[..., 0]


class Decoder(Side):
  """Codes -> image in about [0, 1]."""

  def __init__(self, c: Config):
    super().__init__(c, c.decoder)
    width = c.decoder.width
    self.side, self.patch = c.side, c.patch
    self.decoder_embed = nn.Linear(c.code_dim, width)
    self.mask_token = nn.Parameter(torch.empty(1, 1, width))
    self.ffn = nn.Sequential(nn.Conv2d(width, c.patch**2 * c.channels, 1))
    self.conv_out = nn.Conv2d(c.channels, c.channels, 3, padding=1)

  def forward(self, codes: Tensor) -> Tensor:
    batch, side, patch = len(codes), self.side, self.patch
    masks = self.mask_token.expand(batch, side * side, -1)
    x = self.through(masks, self.decoder_embed(codes))[:, 1 : 1 + side * side]
    x = self.ln_post(x).transpose(1, 2).reshape(batch, -1, side, side)
    x = self.ffn(x).view(batch, patch, patch, -1, side, side)
    return self.conv_out(
      x.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, side * patch, side * patch)
    )


class Quantizer(nn.Module):
  """Nearest code, straight through."""

  def __init__(self, num_codes: int, code_dim: int, is_unit_norm: bool):
    super().__init__()
    self.embedding = nn.Embedding(num_codes, code_dim)
    self.is_unit_norm = is_unit_norm

  def ids(self, z: Tensor) -> Tensor:
    codes = self.embedding.weight
    if self.is_unit_norm:
      z, codes = F.normalize(z, dim=-1), F.normalize(codes, dim=-1)
    rows = z.reshape(-1, z.shape[-1])
    distance = rows.square().sum(1, keepdim=True) + codes.square().sum(1)
    return (distance - 2 * rows @ codes.T).argmin(1).view(z.shape[:-1])

  def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
    """The codes, and 0.25 commitment + codebook loss."""
    q = self.embedding(self.ids(z))
    if self.is_unit_norm:
      z, q = F.normalize(z, dim=-1), F.normalize(q, dim=-1)
    loss = 0.25 * F.mse_loss(q.detach(), z) + F.mse_loss(q, z.detach())
    return z + (q - z).detach(), loss


class TiTok(nn.Module):
  """The whole: images float32[B, C, H, W] in [-1, 1]."""

  def __init__(self, c: Config):
    super().__init__()
    self.latent_tokens = nn.Parameter(torch.empty(c.num_tokens, c.encoder.width))
    self.encoder, self.decoder = Encoder(c), Decoder(c)
    self.quantize = Quantizer(c.num_codes, c.code_dim, c.use_l2_norm)

  def encode(self, image: Tensor) -> Tensor:
    return self.quantize.ids(self._latents(image))

  def decode(self, ids: Tensor) -> Tensor:
    codes = self.quantize.embedding(ids)
    if self.quantize.is_unit_norm:
      codes = F.normalize(codes, dim=-1)
    return 2 * self.decoder(codes) - 1

  def forward(self, image: Tensor) -> Tensor:
    """The training loss: squared error and the quantizer's."""
    codes, loss = self.quantize(self._latents(image))
    return F.mse_loss(2 * self.decoder(codes) - 1, image) + loss

  def _latents(self, image: Tensor) -> Tensor:
    return self.encoder((image + 1) / 2, self.latent_tokens).transpose(1, 2)
