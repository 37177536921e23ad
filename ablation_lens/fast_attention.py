"""`ablation_lens.models.fast_attention` under its first name, which README showed."""

from ablation_lens.models.fast_attention import disable_fast_attention, enable_fast_attention, is_fast

__all__ = ["disable_fast_attention", "enable_fast_attention", "is_fast"]
