"""Graph anchor-relation tokenization against plain definitions on small graphs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.quantizers.anchors import (
  AnchorEncoder,
  AnchorTokens,
  Graph,
  choose_anchors,
  distinctness,
  nearest_anchors,
  pagerank,
  random_tokens,
  relation_context,
  tokenize,
)


@pytest.fixture(scope="module")
def graph():
  """60 nodes, 5 relations, 90 edges, among them loops and repeated ones; not connected."""
  rng = np.random.default_rng(0)
  edges = np.stack(
    [rng.integers(0, 60, 90), rng.integers(0, 5, 90), rng.integers(0, 55, 90)], axis=1
  )
  edges[:3, 2] = edges[:3, 0]
  edges[3] = edges[4]
  return Graph(edges, 60, 5)


def adjacency(graph) -> np.ndarray:
  near = np.zeros((graph.num_nodes, graph.num_nodes), bool)
  near[graph.edges[:, 0], graph.edges[:, 2]] = True
  near |= near.T
  np.fill_diagonal(near, False)
  return near


def all_hops(graph) -> np.ndarray:
  """Hops between any two nodes by powers of the adjacency matrix; inf where there is no way."""
  near = adjacency(graph)
  hops = np.where(np.eye(graph.num_nodes, dtype=bool), 0.0, np.inf)
  for hop in range(1, graph.num_nodes):
    reached = (near.astype(int) @ (hops < hop)) > 0
    hops = np.where(reached & np.isinf(hops), hop, hops)
  return hops


@pytest.mark.parametrize("k", [1, 4, 12])
def test_nearest_anchors_equal_all_shortest_paths(graph, k):
  anchor_nodes = np.random.default_rng(1).permutation(60)[:12]
  anchors, dists = nearest_anchors(graph, anchor_nodes, k)
  hops = all_hops(graph)[:, anchor_nodes]
  assert np.isinf(hops).any(), "some nodes lie apart"
  order = np.argsort(hops, axis=1, kind="stable")[:, :k]
  expected = np.take_along_axis(hops, order, axis=1)
  np.testing.assert_array_equal(dists, np.where(np.isinf(expected), -1, expected))
  np.testing.assert_array_equal(anchors, np.where(np.isinf(expected), -1, order))
  assert anchors.dtype == dists.dtype == np.int32
  near, _ = nearest_anchors(graph, anchor_nodes, k, max_hops=1)
  np.testing.assert_array_equal(near, np.where(expected <= 1, order, -1))


def test_pagerank_solves_its_equation(graph):
  near = adjacency(graph).astype(float)
  degrees = near.sum(1)
  home = np.zeros(60)
  home[[3, 9]] = 0.5
  step = np.where(degrees[:, None] > 0, near / np.maximum(degrees, 1)[:, None], 0)
  # Walks without a neighbour start anew as well.
  step = 0.85 * step + np.outer(1 - 0.85 * step.sum(1), home)
  values, vectors = np.linalg.eig(step.T)
  expected = np.real(vectors[:, np.argmax(np.real(values))])
  found = pagerank(graph, restart=np.array([3, 9]))
  np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-8)
  assert pagerank(graph).sum() == pytest.approx(1)


def test_anchors_are_a_mix(graph):
  chosen = choose_anchors(graph, 20, seed=3)
  assert len(set(chosen.tolist())) == 20 and chosen.dtype == np.int32
  np.testing.assert_array_equal(chosen, choose_anchors(graph, 20, seed=3))
  assert (chosen != choose_anchors(graph, 20, seed=4)).any()
  degrees = adjacency(graph).sum(1)
  by_degree = np.argsort(-degrees, kind="stable")
  np.testing.assert_array_equal(chosen[:8], by_degree[:8])
  rank = pagerank(graph, restart=by_degree[:20])
  rank[chosen[:8]] = -1
  np.testing.assert_array_equal(chosen[8:16], np.argsort(-rank, kind="stable")[:8])
  alone = choose_anchors(graph, 7, {"degree": 1.0})
  np.testing.assert_array_equal(alone, by_degree[:7])
  assert len(choose_anchors(graph, 60)) == 60


def test_relations_leave_their_node(graph):
  rels = relation_context(graph, 4, seed=1)
  full = relation_context(graph, 10)
  for node in range(60):
    leaving = set(graph.edges[graph.edges[:, 0] == node, 1].tolist())
    leaving |= {r + 5 for r in graph.edges[graph.edges[:, 2] == node, 1].tolist()}
    assert [r for r in full[node] if r >= 0] == sorted(leaving)
    drawn = [r for r in rels[node].tolist() if r >= 0]
    assert len(drawn) == min(4, len(leaving)) and set(drawn) <= leaving
    assert rels[node].tolist() == drawn + [-1] * (4 - len(drawn))
  assert (rels != relation_context(graph, 4, seed=2)).any()
  np.testing.assert_array_equal(rels, relation_context(graph, 4, seed=1))


def test_distinctness_of_known_codes():
  anchors = np.array([[0, 1], [1, 0], [2, 3], [4, -1]], np.int32)
  rels = np.full((4, 1), -1, np.int32)
  tokens = AnchorTokens(anchors, anchors, rels, np.arange(5))
  found = distinctness(tokens, num_pairs=20_000)
  assert found["distinct"] == 0.75
  assert found["entropy_bits"] == pytest.approx(1.5)
  # One pair of six shares everything, the others nothing.
  assert found["jaccard"] == pytest.approx(5 / 6, abs=0.01)


def test_random_codes_are_as_distinct_as_nearest_anchors(graph):
  random = random_tokens(graph, 20, 4, 3, seed=1)
  assert random.anchors.shape == (60, 4) and random.rels.shape == (60, 3)
  for row in np.concatenate([random.anchors, random.rels + 20], axis=1):
    assert len(set(row.tolist())) == 7
  assert random.anchors.max() < 20 and random.rels.max() < 10
  nearest = tokenize(graph, choose_anchors(graph, 20), k=4, m=3)
  assert distinctness(random)["entropy_bits"] == pytest.approx(np.log2(60))
  assert distinctness(nearest)["entropy_bits"] <= np.log2(60) + 1e-9
  assert abs(distinctness(random)["jaccard"] - distinctness(nearest)["jaccard"]) < 0.05


@pytest.mark.parametrize("pooling", ["mlp", "transformer"])
def test_the_encoder_tells_tokens_apart_and_learns(graph, pooling):
  tokens = tokenize(graph, choose_anchors(graph, 12), k=3, m=2)
  encoder = AnchorEncoder(12, 5, 8, pooling=pooling, max_distance=2)
  arrays = tuple(map(jnp.asarray, (tokens.anchors, tokens.dists, tokens.rels)))
  params = jax.jit(encoder.init)(jax.random.key(0), *arrays)["params"]

  @jax.jit
  def call(params, *arrays):
    return encoder.apply({"params": params}, *arrays)

  vectors = call(params, *arrays)
  assert vectors.shape == (60, 8) and vectors.dtype == jnp.float32
  assert np.isfinite(vectors).all()
  # From max_distance on distances are the same, below they are not.
  anchors, dists, rels = arrays
  far = call(params, anchors, jnp.where(dists >= 2, 9, dists), rels)
  np.testing.assert_array_equal(far, vectors)
  near = call(params, anchors, jnp.where(dists >= 2, 1, dists), rels)
  moved = np.abs(near - vectors).max(-1) > 1e-6
  np.testing.assert_array_equal(moved, (np.asarray(dists) >= 2).any(-1))
  if pooling == "transformer":  # a set: the order of its tokens is nothing
    turned = call(params, anchors[:, ::-1], dists[:, ::-1], rels[:, ::-1])
    np.testing.assert_allclose(turned, vectors, atol=1e-5)

  goal = jax.random.normal(jax.random.key(1), (60, 8))
  loss = jax.jit(jax.value_and_grad(lambda p: jnp.mean((call(p, *arrays) - goal) ** 2)))
  first, grad = loss(params)
  second, _ = loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, grad))
  assert float(second) < float(first)


@pytest.mark.parametrize(
  "call, said",
  [
    (lambda graph: Graph(np.zeros((3, 2), int), 4, 1), "of \\(head, relation, tail\\)"),
    (lambda graph: Graph(np.array([[0, 0, 4]]), 4, 1), "4 nodes"),
    (lambda graph: choose_anchors(graph, 61), "61 anchors"),
    (lambda graph: choose_anchors(graph, 5, {"degree": 0.5}), "sum to 1"),
    (lambda graph: choose_anchors(graph, 5, {"degres": 1.0}), "did you mean 'degree'"),
    (lambda graph: random_tokens(graph, 3, 4, 1), "cannot be distinct"),
  ],
)
def test_refuses(graph, call, said):
  with pytest.raises(TokzooError, match=said):
    call(graph)
