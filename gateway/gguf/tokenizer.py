"""The tokenizer that a GGUF file describes, as the tokenizers library runs it.

Two kinds: ``gpt2``, byte-level pairs with the merges in the file, and ``llama``, the pairs of
SentencePiece, whose merges follow from the vocabulary. How a text is split before that is
known by name alone (``tokenizer.ggml.pre``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from gateway.gguf.file import Metadata
from gateway.text import TokenizerError

_PREFIX: Final = "tokenizer.ggml"
_SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"


class TokenKind(IntEnum):
    """Of a token, as ``tokenizer.ggml.token_type`` has it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END: Final = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _END
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATHS: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _END


def _by_case(after: str, numbers: str) -> str:
    """Return a rule that splits words where a capital letter begins another."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{after}"
    name = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{after}"
    return f"{word}|{name}|{numbers}{_PATHS}"


_THREE_DIGITS: Final = _WORDS + r"|\p{N}{1,3}" + _SIGNS
_ONE_DIGIT: Final = _WORDS + r"|\p{N}" + _SIGNS
_RULES: Final[Mapping[str, str | None]] = {
    # None: the rule of GPT-2, which the library has.
    "gpt-2": None,
    "olmo": None,
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx"), _THREE_DIGITS),
    **dict.fromkeys(("smaug-bpe", "pixtral"), _THREE_DIGITS),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _ONE_DIGIT),
    "gpt-4o": _by_case(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),
    "tekken": _by_case("", r"\p{N}"),
}
# GPT-2's rule, and every digit alone.
_SINGLE_DIGITS: Final = ("smollm", "starcoder", "refact", "command-r")
# Taken whole where the vocabulary has a whole word, whatever the merges say.
_WHOLE_WORDS: Final = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")


def tokenizer_of(metadata: Metadata) -> Tokenizer:
    """Return the tokenizer of a file.

    Raises:
        TokenizerError: It is of a kind that is not read, or its parts do not fit together.
    """
    own = metadata.get("tokenizer.huggingface.json")
    kind = metadata.get(f"{_PREFIX}.model")
    try:
        if isinstance(own, str):
            return Tokenizer.from_str(own)
        if kind == "gpt2":
            tokenizer = _byte_level(metadata)
        elif kind == "llama":
            tokenizer = _sentence_piece(metadata)
        else:
            raise TokenizerError(
                f"{metadata.path}: tokenizers of kind {kind!r} are not read (gpt2 and llama are); "
                "choose the same model in safetensors"
            )
        _add_tokens(tokenizer, metadata)
        _add_ends(tokenizer, metadata, default_begin=kind == "llama")
    except TokenizerError:
        raise
    except Exception as error:  # the Rust side raises bare `Exception`
        raise TokenizerError(
            f"{metadata.path}: its tokenizer is damaged ({error}); download the file again"
        ) from error
    return tokenizer


def token_text(metadata: Metadata, role: str) -> str | None:
    """Return the text of a special token such as ``bos``; None: the file names none."""
    token_id, tokens = metadata.get(f"{_PREFIX}.{role}_token_id"), _tokens(metadata)
    is_known = isinstance(token_id, int) and 0 <= token_id < len(tokens)
    return tokens[token_id] if is_known else None


def control_tokens(metadata: Metadata) -> dict[str, int]:
    """Return the ids of tokens that steer and have no text."""
    kinds = _kinds(metadata)
    return {
        token: token_id
        for token_id, (token, kind) in enumerate(zip(_tokens(metadata), kinds, strict=True))
        if kind == TokenKind.CONTROL
    }


def _byte_level(metadata: Metadata) -> Tokenizer:
    rule = metadata.get(f"{_PREFIX}.pre")
    if rule not in _RULES and rule not in _SINGLE_DIGITS:
        raise TokenizerError(
            f"{metadata.path}: texts that are split by the rule {rule!r} are not known; choose "
            "the same model in safetensors, or a file made by a newer llama.cpp"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get(f"{_PREFIX}.merges", [])]
    vocabulary = {token: token_id for token_id, token in enumerate(_tokens(metadata))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule in _WHOLE_WORDS))
    tokenizer.pre_tokenizer = _splitter(rule)
    tokenizer.decoder = decoders.ByteLevel()
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _splitter(rule: str) -> pre_tokenizers.PreTokenizer:
    pattern = _RULES.get(rule)
    first: list[pre_tokenizers.PreTokenizer] = []
    if pattern is not None:
        first = [pre_tokenizers.Split(Regex(pattern), "isolated")]
    elif rule in _SINGLE_DIGITS:
        first = [pre_tokenizers.Digits(individual_digits=True)]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    return pre_tokenizers.Sequence([*first, last])


def _sentence_piece(metadata: Metadata) -> Tokenizer:
    is_gemma = metadata.architecture.startswith("gemma")
    tokens = _tokens(metadata)
    if is_gemma:
        # Runs of spaces stand in the file as they look in a text.
        tokens = [_SPACE * len(token) if token.strip(" ") == "" else token for token in tokens]
    scores: Sequence[float] = metadata.get(f"{_PREFIX}.scores", [])
    # Gemma's scores do not follow the order of its merges; the order of its tokens does.
    ranks = range(len(tokens)) if is_gemma else [-score for score in scores]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(vocabulary, ranks),
            unk_token=token_text(metadata, "unknown"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = metadata.get(f"{_PREFIX}.add_space_prefix", not is_gemma)
    replace = normalizers.Replace(" ", _SPACE)
    prepend = [normalizers.Prepend(_SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, replace])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence([*steps, *strip])
    return tokenizer


def _merges(vocabulary: Mapping[str, int], ranks: Sequence[float]) -> list[tuple[str, str]]:
    """Return all pairs of tokens that make a token, the token of the least rank first."""
    merges = []
    for token, _ in sorted(vocabulary.items(), key=lambda item: ranks[item[1]]):
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def _add_tokens(tokenizer: Tokenizer, metadata: Metadata) -> None:
    """Add what is found in a text as a whole: tokens that steer, and those of a user."""

    def added(kind: TokenKind) -> list[AddedToken]:
        is_special = kind is TokenKind.CONTROL
        return [
            AddedToken(token, special=is_special, normalized=False)
            for token, found in zip(_tokens(metadata), _kinds(metadata), strict=True)
            # What is not in the vocabulary would get an id of its own.
            if found == kind and tokenizer.token_to_id(token) is not None
        ]

    tokenizer.add_special_tokens(added(TokenKind.CONTROL))
    tokenizer.add_tokens(added(TokenKind.USER_DEFINED))


def _add_ends(tokenizer: Tokenizer, metadata: Metadata, *, default_begin: bool) -> None:
    """Put beginning and end of a text around it where the model is used to them."""
    roles = (("bos", default_begin), ("eos", False))
    texts = [
        token_text(metadata, role) if metadata.get(f"{_PREFIX}.add_{role}_token", default) else None
        for role, default in roles
    ]
    special = [(text, tokenizer.token_to_id(text)) for text in texts if text is not None]
    if special:
        begin, end = ([] if text is None else [text] for text in texts)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *begin, "$B", *end],
            special_tokens=special,
        )


def _tokens(metadata: Metadata) -> list[str]:
    tokens: list[str] = metadata.need(f"{_PREFIX}.tokens", list[str])
    return tokens


def _kinds(metadata: Metadata) -> Sequence[int]:
    tokens = _tokens(metadata)
    kinds: Sequence[int] = metadata.get(f"{_PREFIX}.token_type") or [TokenKind.NORMAL] * len(tokens)
    return kinds
