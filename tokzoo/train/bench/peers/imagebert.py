"""ImageBert and its sampler, in PyTorch."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokzoo.generators.maskgit.imagebert import ImageBertConfig


class Parts(nn.Module):
  """A layer and the norm behind it, under BERT's names."""

  def __init__(self, before: int, after: int, eps: float):
    super().__init__()
    self.dense, self.LayerNorm = nn.Linear(before, after), nn.LayerNorm(after, eps)

  def forward(self, x: Tensor, residual: Tensor) -> Tensor:
    return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
  """Self-attention and what follows."""

  def __init__(self, c: ImageBertConfig):
    super().__init__()
    names = ("query", "key", "value")
    self.heads, self.self = c.heads, nn.ModuleDict()
    for name in names:
      self.self[name] = nn.Linear(c.width, c.width)
    self.output = Parts(c.width, c.width, c.norm_eps)

  def forward(self, x: Tensor) -> Tensor:
    batch, length, width = x.shape
    q, k, v = (
      self.self[name](x).view(batch, length, self.heads, -1).transpose(1, 2)
      for name in ("query", "key", "value")
    )
    y = F.scaled_dot_product_attention(q, k, v)
    return self.output(y.transpose(1, 2).reshape(batch, length, width), x)


class Layer(nn.Module):
  """Post-norm BERT layer."""

  def __init__(self, c: ImageBertConfig):
    super().__init__()
    self.attention = Attention(c)
    self.intermediate = nn.ModuleDict({"dense": nn.Linear(c.width, c.mlp_width)})
    self.output = Parts(c.mlp_width, c.width, c.norm_eps)

  def forward(self, x: Tensor) -> Tensor:
    x = self.attention(x)
    return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Embeddings(nn.Module):
  """Words, places and types."""

  def __init__(self, c: ImageBertConfig):
    super().__init__()
    self.word_embeddings = nn.Embedding(c.rows, c.width)
    self.position_embeddings = nn.Embedding(c.num_tokens + 1, c.width)
    self.token_type_embeddings = nn.Embedding(2, c.width)
    self.LayerNorm = nn.LayerNorm(c.width, c.norm_eps)

  def forward(self, ids: Tensor) -> Tensor:
    x = self.word_embeddings(ids) + self.position_embeddings.weight
    return self.LayerNorm(x + self.token_type_embeddings.weight[0])


class ImageBert(nn.Module):
  """The generator, under the published names ("model.")."""

  def __init__(self, c: ImageBertConfig):
    super().__init__()
    self.config = c
    self.layers = [Layer(c) for _ in range(c.layers)]
    encoder = nn.ModuleDict({"layer": nn.ModuleList(self.layers)})
    parts = {"embeddings": Embeddings(c), "encoder": encoder}
    self.model = nn.ModuleDict(parts | {"lm_head": nn.Linear(c.width, c.vocab)})

  def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
    """Logits of every token."""
    rows = torch.cat([labels[:, None] + self.config.vocab + 1, ids], 1)
    x = self.model["embeddings"](rows)
    for layer in self.layers:
      x = layer(x)
    return self.model["lm_head"](x[:, 1:])

  def sample(self, labels: Tensor, steps: int, guidance: float) -> Tensor:
    """Tokens [B, K] without noise (what both sides draw alike), guided throughout."""
    c = self.config
    none = torch.full_like(labels, c.num_classes)
    both = torch.cat([labels, none])
    ids = torch.full((len(labels), c.num_tokens), c.vocab)
    for i in range(steps):
      towards, away = self(torch.cat([ids, ids]), both).chunk(2)
      logits = towards + guidance * (towards - away)
      masked = ids == c.vocab
      chosen, drawn = logits.max(-1)
      drawn = torch.where(masked, drawn, ids)
      if i == steps - 1:
        return drawn
      confidence = torch.where(masked, chosen, torch.inf)
      ratio = math.acos((i + 1) / steps) * 2 / math.pi
      count = torch.full((len(ids),), math.floor(c.num_tokens * ratio))
      count = torch.clamp(torch.minimum(masked.sum(1) - 1, count), min=1)
      threshold = confidence.sort(1).values.gather(1, count[:, None] - 1)
      ids = torch.where(confidence <= threshold, c.vocab, drawn)
    return ids
