"""RAR in raster order, with its cache, in PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokzoo.generators.rar import Config


class Attention(nn.Module):
  """Normed queries and keys, over a cache of all places."""

  def __init__(self, c: Config):
    super().__init__()
    self.heads = c.heads
    self.qkv, self.proj = nn.Linear(c.width, 3 * c.width), nn.Linear(c.width, c.width)
    head = c.width // c.heads
    self.q_norm, self.k_norm = (nn.LayerNorm(head, c.norm_eps) for _ in range(2))
    self.keys = self.values = torch.empty(0)

  def forward(self, x: Tensor, place: int) -> Tensor:
    batch, length, width = x.shape
    parts = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = self.q_norm(parts[0]), self.k_norm(parts[1]), parts[2]
    end = place + length
    self.keys[:, :, place:end], self.values[:, :, place:end] = k, v
    y = F.scaled_dot_product_attention(
      q, self.keys[:, :, :end], self.values[:, :, :end], is_causal=length > 1
    )
    return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
  """Exact GELU."""

  def __init__(self, c: Config):
    super().__init__()
    self.fc1, self.fc2 = (
      nn.Linear(c.width, c.mlp_width),
      nn.Linear(c.mlp_width, c.width),
    )

  def forward(self, x: Tensor) -> Tensor:
    return self.fc2(F.gelu(self.fc1(x)))


class Modulation(nn.Module):
  """SiLU, then a linear layer."""

  def __init__(self, width: int, parts: int):
    super().__init__()
    linear = nn.Linear(width, parts * width)
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), linear)


class Block(Modulation):
  """adaLN block."""

  def __init__(self, c: Config):
    super().__init__(c.width, 6)
    self.norm1, self.norm2 = (nn.LayerNorm(c.width, c.norm_eps) for _ in range(2))
    self.attn, self.mlp = Attention(c), MLP(c)

  def forward(self, x: Tensor, condition: Tensor, place: int) -> Tensor:
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(
      condition
    ).chunk(6, -1)
    x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, place)
    return x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)


class RAR(nn.Module):
  """The generator."""

  def __init__(self, c: Config):
    super().__init__()
    self.config = c
    self.embeddings = nn.Embedding(c.vocab + c.num_classes + 2, c.width)
    self.cls_token = nn.Parameter(torch.empty(1, 1, c.width))
    positions = 1, c.num_tokens + c.spare_positions, c.width
    self.pos_embed = nn.Parameter(torch.empty(positions))
    self.target_aware_pos_embed = nn.Parameter(torch.empty(positions))
    conditions = 1, c.num_tokens + c.spare_conditions, c.width
    self.timesteps_embeddings = nn.Parameter(torch.empty(conditions))
    blocks = [Block(c) for _ in range(c.layers)]
    self.blocks = nn.ModuleList(blocks)
    self.caches = [block.attn for block in blocks]
    self.adaln_before_head = Modulation(c.width, 2)
    self.lm_head = nn.Linear(c.width, c.vocab)

  def forward(self, x: Tensor, classes: Tensor, place: int) -> Tensor:
    """Logits of the token after the last of these places."""
    rows = slice(place, place + x.shape[1])
    condition = classes + self.timesteps_embeddings[:, rows]
    for block in self.blocks:
      x = block(x, condition, place)
    last = condition[:, -1]
    scale, shift = self.adaln_before_head.adaLN_modulation(last).chunk(2, -1)
    normed = F.layer_norm(x[:, -1], x.shape[-1:], eps=self.config.norm_eps)
    return self.lm_head(normed * (1 + scale) + shift)

  def sample(self, labels: Tensor, guidance: float) -> Tensor:
    """Greedy tokens [B, N] (what both sides draw alike), guided by s = g throughout."""
    c = self.config
    none = torch.full_like(labels, c.num_classes)
    classes = self.embeddings(torch.cat([labels, none]) + c.vocab + 1)[:, None]
    shape = len(classes), c.heads, c.num_tokens + 1, c.width // c.heads
    for attention in self.caches:
      attention.keys, attention.values = torch.zeros(2, *shape)
    x = torch.cat([self.cls_token.expand_as(classes), classes], 1)
    x = x + self.pos_embed[:, :2]
    x[:, 1] += self.target_aware_pos_embed[:, 2]
    place, ids = 0, []
    for index in range(c.num_tokens):
      towards, away = self(x, classes, place).chunk(2)
      ids.append((away + guidance * (towards - away)).argmax(-1))
      place = index + 2
      x = self.embeddings(torch.cat([ids[-1], ids[-1]]))[:, None]
      x = x + self.pos_embed[:, place : place + 1]
      x = x + self.target_aware_pos_embed[:, place + 1 : place + 2]
    return torch.stack(ids, 1)
