"""The zoo's vocabularies: byte-level BPEs, each learned from the train split of its corpus.

The three models of `stdlib` share one of 2048 tokens; that of `journeys` is smaller, as its words are few. The models
differ in how Hugging Face's models of their family frame a text: OPT begins with `</s>`, Mistral and Llama with `<s>`,
RoBERTa puts `<s> … </s>` around it.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 2048
BLANK_LINE = "\n\n"
# RoBERTa derives positions from the pad id and OPT's BOS is `</s>`; ids 0–3 are those of both families.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
START, PAD, END, UNKNOWN, MASK = range(5)

_ROLES: dict[str, dict[str, str]] = {
    "opt": {"bos_token": "</s>", "eos_token": "</s>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>"},
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
    "llama": ("<s> $A", "<s> $A <s> $B"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
}


def learn_vocabulary(
    documents: Sequence[str], size: int = VOCABULARY_SIZE, *, whole_blank_lines: bool = False
) -> Tokenizer:
    """Learn the byte-level BPE from documents; the same documents give the same vocabulary.

    Args:
        documents: what to learn it from.
        size: how many tokens at most; few words give fewer.
        whole_blank_lines: keep a blank line between paragraphs, two newlines, apart from what surrounds it, so that it
            becomes one token.

    >>> tokenizer = learn_vocabulary(["a word and a word"])
    >>> tokenizer.decode(tokenizer.encode("naïve, 日本").ids)
    'naïve, 日本'
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if whole_blank_lines:
        # ByteLevel's rule leaves the last of several blanks to the word that follows: two newlines would be two tokens.
        cut = pre_tokenizers.Sequence([pre_tokenizers.Split(BLANK_LINE, "isolated"), cut])
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        # All 256 bytes, so that every text can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def frame(tokenizer: Tokenizer, family: str, context: int) -> PreTrainedTokenizerFast:
    """The Hugging Face tokenizer of a family (`opt`, `mistral`, `llama`, `roberta`) over a vocabulary."""
    # A copy: the post-processor of one family must not be that of a vocabulary that others share.
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
