"""Peak resident memory of loading a ~500 MB OPT from disk, above what the imports alone take.

Each measurement is a process of its own, because a process never gives its peak back. Run as a script.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from peak_memory import peak_mib

GOAL = 1.3


def build(folder: str) -> int:
    """Write a random OPT of about 500 MB in float32 and return the size of its weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=50272, hidden_size=768, word_embed_proj_dim=768, ffn_dim=3072, num_hidden_layers=12,
        num_attention_heads=12,
    )  # fmt: skip
    transformers.OPTForCausalLM(config).save_pretrained(folder)
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def child(what: str, folder: str) -> None:
    """Do one thing and print the peak."""
    if what == "build":
        print(build(folder))
        return
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
    print(peak_mib())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return

    def measure(what: str, folder: str) -> float:
        command = [sys.executable, __file__, "--child", what, folder]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

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
