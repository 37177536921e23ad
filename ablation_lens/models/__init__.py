"""A name becomes a hooked model. With `adapters/` the only place that knows TransformerLens' versions.

- `load`: `load_model`, for every family; `hook_model`, for a Hugging Face model that is in memory.
- `checkpoints`: finding and reading a Hugging Face folder or hub id.
- `stored`: what lies in its files, before anything is built from them.
- `hooked_transformer` (transformer-lens 3.9), `bridge` (4.x): causal models.
- `devices`: a causal model spread over several GPUs.
- `fast_attention`: the same hooks and numbers as `HookedTransformer`, without the detours.
"""
