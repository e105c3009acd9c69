"""Graph anchor-relation tokenization: a node is its nearest anchors and some of its relations.

Galkin et al., "NodePiece: Compositional and Parameter-Efficient Representations of Large
Knowledge Graphs" (arXiv 2106.12144). There is no codebook to collapse: a few nodes are
anchors, and the tokens of node v are

  anchors  the k anchors nearest to v, in hops over edges of either direction
  dists    how many hops away each of them is
  rels     m of the relation types that leave v; an edge (h, r, t) also leaves t, as r + R

All pads are -1: an anchor that v is not connected to, a relation that v has not got. A node
vector is f([A[a_1] + Z[z_1], ..., R[r_1], ...]), trained end to end (`AnchorEncoder`).

Li et al., "Random Entity Quantization for Parameter-Efficient Compositional Knowledge Graph
Representation" (arXiv 2310.15797), draw the anchors at random instead (`random_tokens`),
which works as well where codes stay distinct (`distinctness`).

The tokenizer runs offline in NumPy and depends on nothing but its arguments: ties go to the
lower anchor, and every draw comes from a seed.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tokzoo.errors import TokzooError, unknown

PUBLISHED_MIX = {"degree": 0.4, "pagerank": 0.4, "random": 0.2}
"""Shares of the anchors by how they are chosen, as in NodePiece."""


@dataclasses.dataclass(frozen=True)
class Graph:
  """A directed multigraph with typed edges.

  edges:          int[E, 3], rows (head, relation, tail)
  num_nodes:      V
  num_relations:  R

  Raises:
    TokzooError: edges of another shape, or that name a node or relation there is not.
  """

  edges: np.ndarray
  num_nodes: int
  num_relations: int

  def __post_init__(self):
    edges = self.edges
    if edges.ndim != 2 or edges.shape[1] != 3 or edges.dtype.kind not in "iu":
      raise TokzooError(
        f"edges are integers [E, 3] of (head, relation, tail); these are {edges.dtype}"
        f"{list(edges.shape)}."
      )
    limits = np.array([self.num_nodes, self.num_relations, self.num_nodes])
    if edges.size and (edges.min() < 0 or (edges.max(axis=0) >= limits).any()):
      raise TokzooError(
        f"the edges name (head, relation, tail) from {edges.min(axis=0).tolist()} to "
        f"{edges.max(axis=0).tolist()}, but there are {self.num_nodes} nodes and "
        f"{self.num_relations} relations, counted from 0."
      )

  def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
    """Either direction of each pair once, no loops: `starts` int[V + 1], `nodes` int[...];
    the neighbours of v are nodes[starts[v] : starts[v + 1]], rising."""
    pairs = self.edges[:, [0, 2]]
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    degrees = np.bincount(pairs[:, 0], minlength=self.num_nodes)
    return np.concatenate([[0], np.cumsum(degrees)]), pairs[:, 1]


@dataclasses.dataclass(frozen=True)
class AnchorTokens:
  """The tokens of all nodes.

  anchors:      int32[V, k], in [0, number of anchors), the nearest first; -1: no further one
  dists:        int32[V, k], hops; -1 where the anchor is
  rels:         int32[V, m], in [0, 2 R), rising; -1: no further one
  anchor_nodes: int32[A], which node each anchor is
  """

  anchors: np.ndarray
  dists: np.ndarray
  rels: np.ndarray
  anchor_nodes: np.ndarray


def choose_anchors(
  graph: Graph,
  count: int,
  mix: Mapping[str, float] = PUBLISHED_MIX,
  seed: int = 0,
) -> np.ndarray:
  """Chooses the nodes that are anchors.

  Args:
    graph: the graph.
    count: how many.
    mix: shares by strategy, which sum to 1: "degree" (most neighbours), "pagerank"
      (personalised PageRank that restarts at the anchors of the highest degree), "random".
      A node that an earlier strategy took is passed over.
    seed: of the random ones.

  Returns:
    int32[count], distinct, in the order of the strategies.

  Raises:
    TokzooError: an unknown strategy, shares that do not sum to 1, more anchors than nodes.
  """
  for name in mix:
    if name not in PUBLISHED_MIX:
      raise unknown("way to choose anchors", name, PUBLISHED_MIX)
  if abs(sum(mix.values()) - 1) > 1e-6 or min(mix.values()) < 0:
    raise TokzooError(
      f"the shares of anchors are {dict(mix)}: they must sum to 1, none below 0."
    )
  if not 1 <= count <= graph.num_nodes:
    raise TokzooError(
      f"{count} anchors were asked of a graph of {graph.num_nodes} nodes: choose from 1 to "
      "that many."
    )
  starts, _ = graph.neighbours()
  by_degree = _descending(np.diff(starts))
  # Rounded shares of the running total, so that they add up to `count`.
  ends = np.rint(count * np.cumsum(list(mix.values()))).astype(int)
  chosen = np.zeros(0, np.int64)
  for name, end in zip(mix, ends, strict=True):
    if name == "degree":
      order = by_degree
    elif name == "pagerank":
      order = _descending(pagerank(graph, restart=by_degree[:count]))
    else:
      order = np.random.default_rng(seed).permutation(graph.num_nodes)
    free = order[~np.isin(order, chosen)]
    chosen = np.concatenate([chosen, free[: max(0, end - len(chosen))]])
  return chosen.astype(np.int32)


def pagerank(
  graph: Graph,
  restart: np.ndarray | None = None,
  damping: float = 0.85,
  tolerance: float = 1e-10,
) -> np.ndarray:
  """Personalised PageRank over edges of either direction, by power iteration.

  Args:
    graph: the graph.
    restart: int[*], the nodes where a walk starts anew; None: any node.
    damping: the probability to walk on. A walk at a node without neighbours starts anew.
    tolerance: of the sum of absolute changes, at which to stop.

  Returns:
    float64[V], which sums to 1.
  """
  starts, nodes = graph.neighbours()
  degrees = np.diff(starts)
  sources = np.repeat(np.arange(graph.num_nodes), degrees)
  home = np.zeros(graph.num_nodes)
  home[slice(None) if restart is None else restart] = 1
  home /= home.sum()
  rank = home
  # The change shrinks by `damping` a step, so this many always do.
  for _ in range(int(np.ceil(np.log(tolerance / 2) / np.log(damping)))):
    share = rank / np.maximum(degrees, 1)
    walked = np.bincount(nodes, share[sources], minlength=graph.num_nodes)
    following = damping * walked
    following += (1 - following.sum()) * home
    if np.abs(following - rank).sum() < tolerance:
      return following
    rank = following
  return rank


def nearest_anchors(
  graph: Graph, anchor_nodes: np.ndarray, k: int, max_hops: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest anchors of every node, by breadth-first search from all anchors at once.

  A node hands on only the k anchors that it keeps, so the work is k times the edges and not
  the anchors times the edges. Nothing is lost: were one of the k nearest of v not among those
  of the neighbour before v on the way, the k that are would be nearer to v as well.

  Args:
    graph: the graph.
    anchor_nodes: int[A], distinct nodes; an anchor is its own nearest, 0 hops away.
    k: how many to keep.
    max_hops: how far to look; None: everywhere.

  Returns:
    anchors and dists, int32[V, k], nearest first, the lower anchor of a tie; pads are -1.
  """
  starts, nodes = graph.neighbours()
  num_anchors = len(anchor_nodes)
  anchors = np.full((graph.num_nodes, k), -1, np.int32)
  dists = np.full((graph.num_nodes, k), -1, np.int32)
  filled = np.zeros(graph.num_nodes, np.int64)
  at, anchor = np.asarray(anchor_nodes, np.int64), np.arange(num_anchors)
  hops = itertools.count() if max_hops is None else range(max_hops + 1)
  for hop in hops:
    # Sorted by node, then by anchor; the r-th newcomer of a node takes its r-th free place.
    at, anchor = np.divmod(np.unique(at * num_anchors + anchor), num_anchors)
    is_new = ~(anchors[at] == anchor[:, None]).any(axis=1)
    at, anchor = at[is_new], anchor[is_new]
    place = filled[at] + np.arange(len(at)) - np.searchsorted(at, at)
    fits = place < k
    at, anchor, place = at[fits], anchor[fits], place[fits]
    if not len(at):
      break
    anchors[at, place], dists[at, place] = anchor, hop
    np.add.at(filled, at, 1)
    degrees = np.diff(starts)[at]
    within = np.arange(degrees.sum()) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    at = nodes[np.repeat(starts[at], degrees) + within]
    anchor = np.repeat(anchor, degrees)
  return anchors, dists


def relation_context(graph: Graph, m: int, seed: int = 0) -> np.ndarray:
  """Up to m of the relation types that leave each node, inverse ones included.

  Args:
    graph: the graph; the inverse of relation r is r + R.
    m: how many; where a node has more, they are drawn without replacement.
    seed: of the draw.

  Returns:
    int32[V, m], rising; pads are -1 and come last.
  """
  head, relation, tail = np.asarray(graph.edges, np.int64).T
  types = 2 * graph.num_relations
  keys = np.concatenate(
    [head * types + relation, tail * types + relation + graph.num_relations]
  )
  node, relation = np.divmod(np.unique(keys), types)
  order = np.lexsort([np.random.default_rng(seed).random(len(node)), node])
  node, relation = node[order], relation[order]
  place = np.arange(len(node)) - np.searchsorted(node, node)
  rels = np.full((graph.num_nodes, m), types)
  rels[node[place < m], place[place < m]] = relation[place < m]
  rels.sort(axis=1)
  return np.where(rels == types, -1, rels).astype(np.int32)


def tokenize(
  graph: Graph,
  anchor_nodes: np.ndarray,
  k: int,
  m: int,
  max_hops: int | None = None,
  seed: int = 0,
) -> AnchorTokens:
  """The tokens of all nodes of a graph.

  Args:
    graph: the graph.
    anchor_nodes: int[A], of `choose_anchors`.
    k: anchors a node.
    m: relations a node.
    max_hops: how far to look for anchors; None: everywhere.
    seed: of the draw of relations.
  """
  anchors, dists = nearest_anchors(graph, anchor_nodes, k, max_hops)
  rels = relation_context(graph, m, seed)
  return AnchorTokens(anchors, dists, rels, np.asarray(anchor_nodes, np.int32))


def random_tokens(
  graph: Graph, num_anchors: int, k: int, m: int, seed: int = 0
) -> AnchorTokens:
  """Random entity quantization: k distinct anchors and m distinct relation types a node, drawn
  without regard to the edges. Distances say nothing and are 0.

  Raises:
    TokzooError: more tokens a node than there are.
  """
  types = 2 * graph.num_relations
  if k > num_anchors or m > types:
    raise TokzooError(
      f"{k} anchors of {num_anchors} and {m} relations of {types} cannot be distinct: "
      "choose fewer a node."
    )
  rng = np.random.default_rng(seed)

  def draw(count: int, of: int) -> np.ndarray:
    lots = rng.random((graph.num_nodes, of))
    return np.sort(np.argsort(lots, axis=1)[:, :count], axis=1).astype(np.int32)

  anchors, rels = draw(k, num_anchors), draw(m, types)
  nodes = rng.permutation(graph.num_nodes)[:num_anchors].astype(np.int32)
  return AnchorTokens(anchors, np.zeros_like(anchors), rels, nodes)


def distinctness(
  tokens: AnchorTokens, num_pairs: int = 10_000, seed: int = 0
) -> dict[str, float]:
  """How well the tokens tell nodes apart, by their sets of anchors and relations.

  Args:
    tokens: of all nodes, at least two.
    num_pairs: how many random pairs of different nodes to compare.
    seed: of the pairs.

  Returns:
    "distinct": the share of codes among nodes, 1 where no two nodes agree;
    "entropy_bits": of the code of a random node, at most log2 V;
    "jaccard": the mean Jaccard distance of two nodes, 1 where they share no token.
  """
  # Sets, so order is nothing; relations are numbered on after the anchors.
  first = tokens.anchors.max(initial=0) + 1
  rels = np.where(tokens.rels < 0, -1, tokens.rels + first)
  codes = np.concatenate([np.sort(tokens.anchors, axis=1), rels], axis=1)
  _, counts = np.unique(codes, axis=0, return_counts=True)
  shares = counts / len(codes)
  rng = np.random.default_rng(seed)
  one = rng.integers(len(codes), size=num_pairs)
  other = (one + rng.integers(1, len(codes), size=num_pairs)) % len(codes)
  a, b = codes[one][:, :, None], codes[other][:, None, :]
  shared = ((a == b) & (a >= 0)).sum(axis=(1, 2))
  either = (a >= 0).sum(axis=(1, 2)) + (b >= 0).sum(axis=(1, 2)) - shared
  return {
    "distinct": len(counts) / len(codes),
    "entropy_bits": float(-(shares * np.log2(shares)).sum()),
    "jaccard": float(np.mean(1 - shared / np.maximum(either, 1))),
  }


class AnchorEncoder(nn.Module):
  """From the tokens of nodes to their vectors.

  num_anchors:    A
  num_relations:  R; 2 R types with the inverse ones
  dim:            D
  max_distance:   hops from here on share an embedding
  pooling:        "mlp", two layers over the tokens side by side, or "transformer", encoder
                  layers over the tokens as a set and the mean over those that are not pads
  num_layers:     of the transformer
  num_heads:      of the transformer
  """

  num_anchors: int
  num_relations: int
  dim: int
  max_distance: int = 10
  pooling: Literal["mlp", "transformer"] = "mlp"
  num_layers: int = 2
  num_heads: int = 4

  @nn.compact
  def __call__(
    self,
    anchors: Int[Array, "*N k"],
    dists: Int[Array, "*N k"],
    rels: Int[Array, "*N m"],
  ) -> Float[Array, "*N D"]:
    """Node vectors float32 of tokens as in `AnchorTokens`; pads have embeddings of their own
    for the MLP."""
    anchor = self._embed("anchor", self.num_anchors, anchors)
    distance = jnp.where(dists < 0, -1, jnp.minimum(dists, self.max_distance))
    anchor = anchor + self._embed("distance", self.max_distance + 1, distance)
    relation = self._embed("relation", 2 * self.num_relations, rels)
    x = jnp.concatenate([anchor, relation], axis=-2)
    if self.pooling == "mlp":
      x = x.reshape(*x.shape[:-2], -1)
      return nn.Dense(self.dim)(nn.relu(nn.Dense(2 * self.dim)(x)))
    kept = jnp.concatenate([anchors, rels], axis=-1) >= 0
    # A node of pads alone looks at them all, rather than at nothing.
    kept = kept | ~jnp.any(kept, axis=-1, keepdims=True)
    for _ in range(self.num_layers):
      attend = nn.MultiHeadDotProductAttention(self.num_heads)
      y = attend(nn.LayerNorm()(x), mask=kept[..., None, None, :])
      x = x + y
      x = x + nn.Dense(self.dim)(nn.gelu(nn.Dense(4 * self.dim)(nn.LayerNorm()(x))))
    weight = kept[..., None].astype(jnp.float32)
    return jnp.sum(x * weight, axis=-2) / jnp.sum(weight, axis=-2)

  def _embed(
    self, name: str, count: int, ids: Int[Array, "*N"]
  ) -> Float[Array, "*N D"]:
    """The embedding of ids in [0, count); -1 has the row after them."""
    table = nn.Embed(count + 1, self.dim, name=name)
    return table(jnp.where(ids < 0, count, ids))


def _descending(score: np.ndarray) -> np.ndarray:
  """Indices by falling score, the lower index of a tie first."""
  return np.argsort(-score, kind="stable")
