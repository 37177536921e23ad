"""Peak resident memory of loading an OPT or RoBERTa from disk, above what the imports alone take.

Each measurement is a process of its own, because a process never gives its peak back. Run as a script.
"""

import argparse
import platform
import tempfile
from importlib.metadata import version

from peak_memory import apart, peak_mib

GOAL, GOAL_CONVERTED = 1.02, 1.1

SIZES = {"toy": (1000, 24, 2, 12), "480M": (50272, 768, 12, 12), "5G": (50272, 2048, 24, 32)}
"""Vocabulary, width, layers and heads, by what the weights take in float32; the largest is OPT-1.3B's."""


def build(folder: str, size: str, stored: str, family: str) -> int:
    """Write a random model, and return what its weights take in float32."""
    import torch
    import transformers

    torch.manual_seed(0)
    vocabulary, width, layers, heads = SIZES[size]
    shape = {"vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    if family == "opt":
        config = transformers.OPTConfig(**shape, word_embed_proj_dim=width, ffn_dim=4 * width)
        loader = transformers.AutoModelForCausalLM
    else:
        config = transformers.RobertaConfig(**shape, intermediate_size=4 * width)
        loader = transformers.AutoModelForMaskedLM
    model = loader.from_config(config, dtype=getattr(torch, stored))
    model.save_pretrained(folder)
    return 4 * model.num_parameters()


def child(what: str, folder: str, *options: str) -> float:
    """Do one thing: the size of what was built, or the peak."""
    if what == "build":
        return build(folder, *options)
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
        model = load_model(folder, dtype="float32")
        model(torch.tensor([[2, 5, 7]]))
    return peak_mib()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=SIZES, default="480M", help="of the weights in float32")
    parser.add_argument("--toy", action="store_const", dest="size", const="toy", help="takes seconds, says nothing")
    parser.add_argument("--stored", default="float32", help="dtype of the files, such as bfloat16")
    parser.add_argument("--family", choices=["opt", "roberta"], default="opt")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(child(*arguments.child))
        return

    toy = arguments.size == "toy"
    with tempfile.TemporaryDirectory() as folder:
        options = (arguments.size, arguments.stored, arguments.family)
        weights = apart(__file__, child, "build", folder, *options, toy=toy) / 2**20
        rounds = [
            (apart(__file__, child, "imports", folder, toy=toy), apart(__file__, child, "ours", folder, toy=toy))
            for _ in range(arguments.rounds)
        ]
    ratios = sorted((ours - base) / weights for base, ours in rounds)
    median = ratios[len(ratios) // 2]
    goal = GOAL if arguments.stored == "float32" else GOAL_CONVERTED
    print(f"{platform.processor() or platform.machine()}, torch {version('torch')}, "
          f"transformer-lens {version('transformer-lens')}, transformers {version('transformers')}")  # fmt: skip
    print(f"{arguments.family}, stored in {arguments.stored}, loaded as float32")
    print(f"weights as float32        {weights:8.0f} MiB")
    print(f"peak, imports only        {rounds[0][0]:8.0f} MiB")
    print(f"peak, load_model + run    {rounds[0][1]:8.0f} MiB")
    print(f"(peak − imports)/weights  {median:8.3f}      goal ≤ {goal}: {'reached' if median <= goal else 'MISSED'}")


if __name__ == "__main__":
    main()
