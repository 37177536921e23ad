"""`python -m ablation_lens` is the `ablation-lens` command."""

from ablation_lens.cli import main

main()
