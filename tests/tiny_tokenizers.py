"""Word-level tokenizers with the special tokens of each family."""

import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "to",
    "it",
    "then",
    "so",
    "we",
    "saw",
    "one",
    "of",
    "them",
    "go",
    "home",
]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def word_tokenizer(before=("<s>",), after=(), words=WORDS):
    """A tokenizer that puts `before` in front of a text and `after` after it; it reads numbers as pairs of digits."""
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pairs = pre_tokenizers.Split(Regex(r"\d\d"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pairs])
    template = " ".join([*before, "$A", *after])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in {*before, *after}]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip
