"""Sentences with a slot, `{}`, which token vectors fill in the place of words.

No tokenizer tells where the slot's tokens are. So the slot is filled twice with one-token words,
and the positions at which the two differ are the slot. That works with any tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

# One token each in every vocabulary, and never merged with the next token.
FILLERS = ("cat", "dog")
LEAST = 3  # letters of a word that is looked for inside of others


@dataclass(frozen=True)
class Vocabulary:
    """The whole words that are one token of a text encoder, and their vectors."""

    words: list[str]
    vectors: torch.Tensor
    """(words, width); the vectors of several encoders are concatenated."""
    scale: torch.Tensor | float = 1.0
    """(width,): the standard deviation of the vectors, one value per encoder. CLIP's is a fiftieth
    of T5's."""

    def of(self, word: str) -> torch.Tensor | None:
        """The vector of a word, (width,); None for a word that is not one token."""
        word = word.lower()
        return self.vectors[self.words.index(word)] if word in self.words else None

    def near(self, word: str, count: int) -> list[str]:
        """The `count` words with the highest cosine similarity to this one, without its own forms.

        An empty list for a word that is not one token.
        """
        vector = self.of(word)
        if vector is None:
            return []
        others = self.without(word)
        similarity = torch.cosine_similarity(others.vectors, vector[None], dim=1)
        return [others.words[i] for i in similarity.topk(min(count, len(others.words))).indices]

    def without(self, *texts: str) -> Vocabulary:
        """This vocabulary without the words of the texts, words that contain one of them, and words
        that one of them contains.

        A word of fewer than LEAST letters, such as "in", is only compared as a whole.
        """
        named = {part for text in texts for part in text.lower().split()}

        def is_related(word: str, part: str) -> bool:
            short = min(len(word), len(part)) < LEAST
            return word == part if short else word in part or part in word

        kept = [
            i
            for i, word in enumerate(self.words)
            if not any(is_related(word, part) for part in named)
        ]
        return Vocabulary([self.words[i] for i in kept], self.vectors[kept], self.scale)


@torch.no_grad()
def check_takes_vectors(model) -> None:
    """Raises ValueError where a model's text encoder cannot read token vectors at the start of a
    prompt, or has no words to try. To be called before any long work."""
    vocabulary = model.vocabulary()
    if not vocabulary.words:
        raise ValueError(
            "No whole word is one token in every text encoder of this CLIP, so it can neither be "
            "attacked by words nor hardened."
        )
    model.encode_with_embeddings(["{} a photo"], vocabulary.vectors[:1][None])


def beside(words: list[str], tables: Sequence[torch.Tensor]) -> Vocabulary:
    """One vocabulary of several encoders. tables: the words' vectors in each, (words, width)."""
    scale = torch.cat([table.std().expand(table.shape[1]) for table in tables])
    return Vocabulary(words, torch.cat(list(tables), 1), scale)


def fill_with_two_fillers(sentence: str, count: int) -> tuple[str, str]:
    """The sentence twice, its slot filled with `count` times the one and the other filler.

    The slot is the first `{}`: a user's text may hold braces, too, and stands behind it.
    """
    one, other = (sentence.replace("{}", " ".join([filler] * count), 1) for filler in FILLERS)
    return one, other


def slot_positions(one: Sequence, other: Sequence, count: int) -> list[int]:
    """The positions of the slot's tokens. one, other: the tokens of the two sentences of
    `fill_with_two_fillers`.

    Raises ValueError where there are not `count`.
    """
    positions = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    if len(positions) != count:
        raise ValueError(
            f"This text encoder reads {len(positions)} of the {count} tokens in the prompt's slot; "
            "use a shorter prompt."
        )
    return positions


def whole_words(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The tokens that are a whole lower-case word, by the word.

    CLIP ends such a token with </w>; other tokenizers begin it with a mark for the space. A
    tokenizer that only knows the word with a capital splits the lower-case one.
    """
    found = {}
    for token, number in vocabulary.items():
        word = token.removesuffix("</w>").lstrip("\u2581\u0120")
        if word != token and len(word) > 1 and word.isascii() and word.isalpha() and word.islower():
            found[word] = number
    return found


def shared_words(vocabularies: Iterable[Mapping[str, int]]) -> tuple[list[str], list[list[int]]]:
    """(the words that are one token in all vocabularies, those tokens in each vocabulary)."""
    found = [whole_words(vocabulary) for vocabulary in vocabularies]
    words = sorted(set.intersection(*map(set, found))) if found else []
    return words, [[tokens[word] for word in words] for tokens in found]
