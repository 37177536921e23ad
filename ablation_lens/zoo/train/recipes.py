"""How each zoo model is built and trained: every number that is not learned."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
)

from ablation_lens.zoo.train.vocabulary import END, PAD, START, VOCABULARY_SIZE

CONTEXT = 256
IMAGE_SIZE = 32
PATCH_SIZE = 4

Kind = Literal["causal", "paragraphs", "masked", "images"]


@dataclass(frozen=True)
class Recipe:
    """A model's training settings.

    Attributes:
        matrix_rate: peak learning rate of the orthogonalised updates of the blocks' matrices.
        other_rate: peak learning rate of AdamW for embeddings, biases, norms and heads.
        dropout: applied where the architecture's config has it, and to every block's two outputs.
        repeats: share of the causal sequences that are a repeated random segment.
        early_masks: share of masked tokens in the first 70 % of the steps; 15 % afterwards.
        vocabulary: how many tokens its vocabulary has at most.
        hidden: of documents of two paragraphs, the share whose second paragraph is kept from seeing the first.
        alone: the share of which there is nothing but the second paragraph, and the blank line before it.
    """

    kind: Kind
    family: str
    width: int
    layers: int
    heads: int
    steps: int
    batch: int
    matrix_rate: float = 0.015
    other_rate: float = 1e-2
    weight_decay: float = 0.1
    dropout: float = 0.0
    repeats: float = 0.0
    early_masks: float = 0.15
    vocabulary: int = VOCABULARY_SIZE
    hidden: float = 0.0
    alone: float = 0.0

    @property
    def corpus(self) -> str:
        """What it learns from."""
        return {"images": "digits", "paragraphs": "journeys"}.get(self.kind, "stdlib")

    def mask_share(self, done: float) -> float:
        """Share of masked tokens when a share `done` of the steps is done: more at first, for more to learn from."""
        return self.early_masks if done < 0.7 else 0.15


RECIPES: dict[str, Recipe] = {
    "tiny-opt": Recipe("causal", "opt", width=128, layers=4, heads=4, steps=4000, batch=8, repeats=0.125),
    "tiny-mistral": Recipe(
        "causal", "mistral", width=128, layers=4, heads=4, steps=3600, batch=8, dropout=0.2, repeats=0.125
    ),
    "tiny-roberta": Recipe(
        "masked", "roberta", width=128, layers=4, heads=4, steps=4500, batch=8, other_rate=6e-3, early_masks=0.4
    ),
    "tiny-vit": Recipe("images", "vit", width=96, layers=4, heads=4, steps=1500, batch=64, other_rate=3e-3),
    "tiny-llama": Recipe(
        "paragraphs",
        "llama",
        width=128,
        layers=4,
        heads=4,
        steps=4000,
        batch=16,
        matrix_rate=0.005,
        other_rate=2e-3,
        vocabulary=672,
        hidden=0.5,
        alone=0.125,
    ),
}


def build_model(recipe: Recipe) -> Any:
    """The untrained model of a recipe; its weights come from torch's global generator.

    >>> build_model(RECIPES["tiny-vit"]).config.id2label[7]
    '7'
    """
    sizes: dict[str, Any] = {
        "hidden_size": recipe.width,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
    }
    if recipe.family == "opt":
        return OPTForCausalLM(
            OPTConfig(
                **sizes,
                vocab_size=recipe.vocabulary,
                ffn_dim=4 * recipe.width,
                word_embed_proj_dim=recipe.width,
                max_position_embeddings=CONTEXT,
                dropout=recipe.dropout,
                attention_dropout=0.0,
                do_layer_norm_before=True,
                pad_token_id=PAD,
                bos_token_id=END,
                eos_token_id=END,
            )
        )
    if recipe.family == "mistral":
        return MistralForCausalLM(
            MistralConfig(
                **sizes,
                vocab_size=recipe.vocabulary,
                num_key_value_heads=recipe.heads // 2,
                intermediate_size=recipe.width * 11 // 4,
                max_position_embeddings=CONTEXT,
                sliding_window=None,
                tie_word_embeddings=True,
                pad_token_id=PAD,
                bos_token_id=START,
                eos_token_id=END,
            )
        )
    if recipe.family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                **sizes,
                vocab_size=recipe.vocabulary,
                intermediate_size=recipe.width * 11 // 4,
                max_position_embeddings=CONTEXT,
                tie_word_embeddings=True,
                pad_token_id=PAD,
                bos_token_id=START,
                eos_token_id=END,
            )
        )
    if recipe.family == "roberta":
        return RobertaForMaskedLM(
            RobertaConfig(
                **sizes,
                vocab_size=recipe.vocabulary,
                intermediate_size=4 * recipe.width,
                max_position_embeddings=CONTEXT + PAD + 1,  # positions start after the pad id
                type_vocab_size=1,
                hidden_dropout_prob=recipe.dropout,
                attention_probs_dropout_prob=0.0,
                layer_norm_eps=1e-5,
                pad_token_id=PAD,
                bos_token_id=START,
                eos_token_id=END,
            )
        )
    labels = {digit: str(digit) for digit in range(10)}
    return ViTForImageClassification(
        ViTConfig(
            **sizes,
            intermediate_size=4 * recipe.width,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            num_channels=3,
            hidden_dropout_prob=recipe.dropout,
            attention_probs_dropout_prob=0.0,
            id2label=labels,
            label2id={label: digit for digit, label in labels.items()},
        )
    )
