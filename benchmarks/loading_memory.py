"""Peak resident memory of loading a ~500 MB OPT from disk, above what the imports alone take.

Each measurement is a process of its own, because a process never gives its peak back. Run as a script.
"""

import argparse
import functools
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

from peak_memory import apart, peak_mib

GOAL = 1.3


def build(folder: str, toy: bool) -> int:
    """Write a random OPT of about 500 MB in float32, or a toy, and return the size of its weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    vocabulary, width, layers = (1000, 24, 2) if toy else (50272, 768, 12)
    config = transformers.OPTConfig(
        vocab_size=vocabulary, hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width,
        num_hidden_layers=layers, num_attention_heads=12,
    )  # fmt: skip
    transformers.OPTForCausalLM(config).save_pretrained(folder)
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def child(what: str, folder: str, toy: bool = False) -> float:
    """Do one thing: the size of what was built, or the peak."""
    if what == "build":
        return build(folder, toy)
    import torch
    import transformers

    from ablation_lens import load_model

    del transformers
    if what == "imports":
        # What any loader of this kind touches besides weights: a model of the same classes, a few kB large.
        from tempfile import TemporaryDirectory

        from transformers import OPTConfig, OPTForCausalLM

        with TemporaryDirectory() as small:
            OPTForCausalLM(
                OPTConfig(vocab_size=8, hidden_size=8, word_embed_proj_dim=8, ffn_dim=8, num_hidden_layers=1,
                          num_attention_heads=2, max_position_embeddings=8)
            ).save_pretrained(small)  # fmt: skip
            load_model(small)
    elif what == "ours":
        model = load_model(folder)
        model(torch.tensor([[2, 5, 7]]))
    return peak_mib()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(child(*arguments.child))
        return

    def measure(what: str, folder: str) -> float:
        return apart(__file__, functools.partial(child, toy=arguments.toy), what, folder, toy=arguments.toy)

    with tempfile.TemporaryDirectory() as folder:
        weights = measure("build", folder) / 2**20
        rounds = [(measure("imports", folder), measure("ours", folder)) for _ in range(arguments.rounds)]
    ratios = sorted((ours - base) / weights for base, ours in rounds)
    median = ratios[len(ratios) // 2]
    print(f"{platform.processor() or platform.machine()}, torch {version('torch')}, "
          f"transformer-lens {version('transformer-lens')}, transformers {version('transformers')}")  # fmt: skip
    print(f"weights on disk           {weights:8.0f} MiB")
    print(f"peak, imports only        {rounds[0][0]:8.0f} MiB")
    print(f"peak, load_model + run    {rounds[0][1]:8.0f} MiB")
    print(f"(peak − imports)/weights  {median:8.2f}      goal ≤ {GOAL}: {'reached' if median <= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
