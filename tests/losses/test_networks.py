"""The frozen networks of perceptual losses beside the same networks written in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.losses import convnext, dinov2, lpips
from tokzoo.train.perception import Perceptual

pytestmark = pytest.mark.torch


def by_channel(values):
  import torch

  return torch.tensor(values).view(1, 3, 1, 1)


def arrays(state) -> dict[str, np.ndarray]:
  return {key: value.detach().numpy() for key, value in state.items()}


def twin_of_lpips():
  """VGG16's convolutions, the linear layers, and the distance of two pictures."""
  import torch
  from torch import nn

  layers, width = [], 3
  for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, *(512, 512, 512, 0) * 2):
    if wide:
      layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()]
      width = wide
    else:
      layers.append(nn.MaxPool2d(2, 2))
  net = nn.Sequential(*layers)
  widths = (64, 128, 256, 512, 512)
  lins = {
    f"lin{k}.model.1.weight": torch.rand(1, n, 1, 1) for k, n in enumerate(widths)
  }

  def maps(x):
    x = (x - by_channel([-0.030, -0.088, -0.188])) / by_channel([0.458, 0.448, 0.450])
    for i, layer in enumerate(net):
      x = layer(x)
      if i in (3, 8, 15, 22, 29):
        yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

  def distance(x, y):
    pairs = zip(maps(x), maps(y), lins.values(), strict=True)
    terms = [((a - b).square() * lin).sum(1).mean((1, 2)) for a, b, lin in pairs]
    return sum(terms)

  state = {f"features.{key}": value for key, value in net.state_dict().items()}
  return state, lins, distance


def test_lpips(tmp_path):
  import torch

  torch.manual_seed(0)
  network, lins, distance = twin_of_lpips()
  # As published: two files, with the classifier that nobody reads.
  torch.save(network | {"classifier.0.weight": torch.zeros(3)}, tmp_path / "vgg16.pth")
  torch.save(lins, tmp_path / "vgg.pth")
  term = Perceptual(
    "lpips-vgg16", files=(str(tmp_path / "vgg16.pth"), str(tmp_path / "vgg.pth"))
  )
  x, y = (torch.rand(2, 3, 37, 44) * 2 - 1 for _ in range(2))
  x.requires_grad_()
  wanted = distance(x, y)
  wanted.mean().backward()
  ours = [jnp.asarray(z.detach().numpy().transpose(0, 2, 3, 1)) for z in (x, y)]
  variables = term.load()
  found = jax.jit(lpips.LPIPS().apply)(variables, *ours)
  np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-4)
  value, gradient = jax.jit(jax.value_and_grad(term, argnums=1))(variables, *ours)
  np.testing.assert_allclose(value, wanted.mean().item(), rtol=1e-4)
  np.testing.assert_allclose(
    gradient, x.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-7
  )
  (tmp_path / "vgg.pth").unlink()
  with pytest.raises(TokzooError, match="no weight file"):
    term.load()


def twin_of_convnext():
  """torchvision's convnext_small."""
  import torch
  import torch.nn.functional as F
  from torch import nn

  class Norm(nn.LayerNorm):
    def forward(self, x):
      return super().forward(x.movedim(1, -1)).movedim(-1, 1)

  class Move(nn.Module):
    def __init__(self, here, there):
      super().__init__()
      self.ends = here, there

    def forward(self, x):
      return x.movedim(*self.ends)

  class Block(nn.Module):
    def __init__(self, d):
      super().__init__()
      self.block = nn.Sequential(
        nn.Conv2d(d, d, 7, padding=3, groups=d),
        Move(1, -1),
        nn.LayerNorm(d, eps=1e-6),
        nn.Linear(d, 4 * d),
        nn.GELU(),
        nn.Linear(4 * d, d),
        Move(-1, 1),
      )
      self.layer_scale = nn.Parameter(torch.rand(d, 1, 1))

    def forward(self, x):
      return x + self.layer_scale * self.block(x)

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      widths, before = (96, 192, 384, 768), 3
      stages = []
      for depth, width in zip((3, 3, 27, 3), widths, strict=True):
        if before == 3:
          stages.append(nn.Sequential(nn.Conv2d(3, width, 4, 4), Norm(width, eps=1e-6)))
        else:
          down = nn.Conv2d(before, width, 2, 2)
          stages.append(nn.Sequential(Norm(before, eps=1e-6), down))
        stages.append(nn.Sequential(*(Block(width) for _ in range(depth))))
        before = width
      self.features = nn.Sequential(*stages)
      self.classifier = nn.Sequential(
        Norm(768, eps=1e-6), nn.Flatten(1), nn.Linear(768, 1000)
      )

    def forward(self, x):
      size = {"size": 224, "mode": "bilinear", "antialias": True}
      x = F.interpolate((x + 1) / 2, **size)
      x = (x - by_channel([0.485, 0.456, 0.406])) / by_channel([0.229, 0.224, 0.225])
      return self.classifier(self.features(x).mean((2, 3), keepdim=True))

  return Network()


@pytest.mark.parametrize("side", [256, 96])
def test_convnext(side):
  import torch

  torch.manual_seed(0)
  twin = twin_of_convnext()
  x = torch.rand(1, 3, side, side) * 2 - 1
  with torch.no_grad():
    wanted = twin(x).numpy()
  variables = convnext.WEIGHTS.to_ours(
    arrays(twin.state_dict()), Perceptual("convnext-s-logits").shapes()
  )
  image = jnp.asarray(x.numpy().transpose(0, 2, 3, 1))
  found = jax.jit(convnext.ConvNeXt().apply)(variables, image)
  np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())


def twin_of_dinov2(width, layers, heads, patch, table):
  """facebookresearch/dinov2's ViT without registers."""
  import torch
  import torch.nn.functional as F
  from torch import nn

  def normal(*shape):
    return nn.Parameter(torch.randn(*shape))

  class Scale(nn.Module):
    def __init__(self):
      super().__init__()
      self.gamma = normal(width)

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
      self.attn = nn.ModuleDict(
        {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
      )
      self.mlp = nn.ModuleDict(
        {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
      )
      self.ls1, self.ls2 = Scale(), Scale()

    def forward(self, x):
      parts = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, heads, -1))
      q, k, v = parts.permute(2, 0, 3, 1, 4)
      h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
      x = x + self.ls1.gamma * self.attn["proj"](h)
      h = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
      return x + self.ls2.gamma * h

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      self.cls_token, self.mask_token = normal(1, 1, width), normal(1, width)
      self.pos_embed = normal(1, table**2 + 1, width)
      self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
      self.blocks = nn.ModuleList([Block() for _ in range(layers)])
      self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x, side):
      x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
      one, places = self.pos_embed.split([1, table**2], 1)
      # Its offset of 0.1 makes the scale, and with it every weight, another one.
      scale = (side + 0.1) / table
      places = places.transpose(1, 2).unflatten(-1, (table, table))
      places = F.interpolate(places, scale_factor=(scale, scale), mode="bicubic")
      x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
      x = x + torch.cat([one, places.flatten(2).transpose(1, 2)], 1)
      for block in self.blocks:
        x = block(x)
      return self.norm(x)[:, 1:]

  return Network()


def test_dinov2():
  import torch

  torch.manual_seed(0)
  sizes, side = {"width": 32, "layers": 2, "heads": 4, "patch": 14, "table": 5}, 3
  twin = twin_of_dinov2(**sizes)
  x = torch.rand(2, 3, side * 14, side * 14) * 2 - 1
  mean, deviation = by_channel([0.485, 0.456, 0.406]), by_channel([0.229, 0.224, 0.225])
  with torch.no_grad():
    wanted = twin(((x + 1) / 2 - mean) / deviation, side).numpy()
  module = dinov2.DINOv2(**sizes)
  image = jnp.asarray(x.numpy().transpose(0, 2, 3, 1))
  like = jax.eval_shape(lambda: module.init(jax.random.key(0), image, side))
  variables = dinov2.WEIGHTS.to_ours(arrays(twin.state_dict()), like)
  found = module.apply(variables, image, side).reshape(wanted.shape)
  np.testing.assert_allclose(found, wanted, atol=2e-4)
