"""The same architectures written plainly in PyTorch, for the benchmarks.

Parameters bear the published names, so weights go over by each system's own table and both
sides compute the same. What a PyTorch user would take is taken: scaled_dot_product_attention,
nn.Conv2d, a cache of preallocated keys and values, the fused AdamW.
"""
