"""The zoo's one vocabulary: a byte-level BPE of 2048 tokens, learned from the train split of `stdlib`.

The three text models share it and differ in how Hugging Face's models of their family frame a text:
OPT begins with `</s>`, Mistral with `<s>`, RoBERTa puts `<s> … </s>` around it.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 2048
# RoBERTa derives positions from the pad id and OPT's BOS is `</s>`; ids 0–3 are those of both families.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
START, PAD, END, UNKNOWN, MASK = range(5)

_ROLES: dict[str, dict[str, str]] = {
    "opt": {"bos_token": "</s>", "eos_token": "</s>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
    "roberta": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    },
}
_FRAMES = {
    "opt": ("</s> $A", "</s> $A </s> $B"),
    "mistral": ("<s> $A", "<s> $A <s> $B"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
}


def learn_vocabulary(documents: Sequence[str]) -> Tokenizer:
    """Learn the byte-level BPE from documents; the same documents give the same vocabulary.

    >>> tokenizer = learn_vocabulary(["a word and a word"])
    >>> tokenizer.decode(tokenizer.encode("naïve, 日本").ids)
    'naïve, 日本'
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        # All 256 bytes, so that every text can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def frame(tokenizer: Tokenizer, family: str, context: int) -> PreTrainedTokenizerFast:
    """The Hugging Face tokenizer of a family (`opt`, `mistral`, `roberta`) over the shared vocabulary."""
    # A copy: the post-processor of one family must not be that of the shared vocabulary.
    backend = Tokenizer.from_str(tokenizer.to_str())
    single, pair = _FRAMES[family]
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<s>", START), ("</s>", END)]
    )
    roles: dict[str, Any] = {"unk_token": "<unk>", "pad_token": "<pad>", **_ROLES[family]}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=context,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **roles,
    )
