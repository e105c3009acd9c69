"""Rules of blocks that several systems share, under a prefix on either side."""

from tokzoo.weights.table import LINEAR, Rule, linear_rules


def norm_rules(key: str, path: str) -> tuple[Rule, Rule]:
  """A torch LayerNorm or GroupNorm and a Linen one."""
  return Rule(f"{key}.weight", f"{path}/scale"), Rule(f"{key}.bias", f"{path}/bias")


def vit_block_rules(key: str, path: str) -> tuple[Rule, ...]:
  """A block of `tokzoo.nn.vit`: torch's packed MultiheadAttention and CLIP's names.

  Args:
    key: the authors' prefix, e.g. "encoder.transformer.{i}".
    path: ours, e.g. "params/encoder/transformer/blocks_{i}".
  """
  return (
    Rule(f"{key}.attn.in_proj_weight", f"{path}/attn/in_proj/kernel", LINEAR),
    Rule(f"{key}.attn.in_proj_bias", f"{path}/attn/in_proj/bias"),
    *linear_rules(f"{key}.attn.out_proj", f"{path}/attn/out_proj"),
    *norm_rules(f"{key}.ln_1", f"{path}/ln_1"),
    *norm_rules(f"{key}.ln_2", f"{path}/ln_2"),
    *linear_rules(f"{key}.mlp.c_fc", f"{path}/c_fc"),
    *linear_rules(f"{key}.mlp.c_proj", f"{path}/c_proj"),
  )


def llama_block_rules(key: str, path: str) -> tuple[Rule, ...]:
  """A block of `tokzoo.nn.decoder.LlamaBlock`, in LlamaGen's names.

  Args:
    key: the authors' prefix, e.g. "layers.{i}".
    path: ours, e.g. "params/stack/block_{i}".
  """
  mlp, ours = f"{key}.feed_forward", f"{path}/feed_forward"
  return (
    Rule(f"{key}.attention.{{x}}.weight", f"{path}/attention/{{x}}/kernel", LINEAR),
    Rule(f"{mlp}.w1.weight", f"{ours}/gate_proj/kernel", LINEAR),
    Rule(f"{mlp}.w3.weight", f"{ours}/up_proj/kernel", LINEAR),
    Rule(f"{mlp}.w2.weight", f"{ours}/down_proj/kernel", LINEAR),
    Rule(f"{key}.attention_norm.weight", f"{path}/attention_norm/scale"),
    Rule(f"{key}.ffn_norm.weight", f"{path}/ffn_norm/scale"),
  )
