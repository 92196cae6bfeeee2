"""Sentences with a gap, `{}`, that token vectors fill where words would stand.

Where the gap's tokens lie no tokenizer tells. So the gap is filled twice with words of one token
each, and what differs is the gap: with any tokenizer, however it pads and whatever it adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

# A token each in every vocabulary, which does not grow together with the next.
FILLERS = ("cat", "dog")
LEAST = 3  # letters of a word that may be a part of others


@dataclass(frozen=True)
class Vocabulary:
    """The whole words that a text encoder has a token of its own for."""

    words: list[str]
    vectors: torch.Tensor
    """(words, width): of several encoders side by side."""
    scale: torch.Tensor | float = 1.0
    """(width,): how far the numbers of a vector spread, the same for all of one encoder. Those of
    CLIP are a fiftieth of T5's."""

    def of(self, word: str) -> torch.Tensor | None:
        """(width,), None for a word of several tokens."""
        word = word.lower()
        return self.vectors[self.words.index(word)] if word in self.words else None

    def near(self, word: str, count: int) -> list[str]:
        """The words whose vectors point most nearly where this one's does, without its own forms.

        None for a word of several tokens.
        """
        vector = self.of(word)
        if vector is None:
            return []
        others = self.without(word)
        alike = torch.cosine_similarity(others.vectors, vector[None], dim=1)
        return [others.words[i] for i in alike.topk(min(count, len(others.words))).indices]

    def without(self, *texts: str) -> Vocabulary:
        """All but the words that are, hold, or are a part of one of those in the texts.

        A short word, such as "in", is no part of others.
        """
        named = {part for text in texts for part in text.lower().split()}

        def alike(word: str, part: str) -> bool:
            short = min(len(word), len(part)) < LEAST
            return word == part if short else word in part or part in word

        kept = [
            i for i, word in enumerate(self.words) if not any(alike(word, part) for part in named)
        ]
        return Vocabulary([self.words[i] for i in kept], self.vectors[kept], self.scale)


@torch.no_grad()
def check_takes_vectors(model) -> None:
    """Raises ValueError where a model's text encoder takes no vectors at the beginning of a prompt:
    to be asked before there is work to lose."""
    model.encode_with_embeddings(["{} a photo"], model.vocabulary().vectors[:1][None])


def beside(words: list[str], tables: Sequence[torch.Tensor]) -> Vocabulary:
    """The words of several encoders, (words, width) of each."""
    scale = torch.cat([table.std().expand(table.shape[1]) for table in tables])
    return Vocabulary(words, torch.cat(list(tables), 1), scale)


def fill_with_two_fillers(sentence: str, count: int) -> tuple[str, str]:
    """The sentence with each of two words in its gap, `count` times.

    The gap is the first: what a user typed may hold braces, too, and stands behind it.
    """
    one, other = (sentence.replace("{}", " ".join([filler] * count), 1) for filler in FILLERS)
    return one, other


def slot_positions(one: Sequence, other: Sequence, count: int) -> list[int]:
    """Where the gap's tokens are in the two sentences of `fill_with_two_fillers`.

    Raises ValueError with one sentence where they are not `count`.
    """
    found = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    if len(found) != count:
        raise ValueError(
            f"This text encoder has {len(found)} places where {count} tokens were to be put into a "
            "prompt; use a shorter prompt."
        )
    return found


def whole_words(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Tokens that are plain words in small letters as they stand between spaces, by the word.

    CLIP ends such tokens with </w>; others begin them with a mark for the space. One that has the
    word with a capital alone splits it up where it is written small.
    """
    found = {}
    for token, number in vocabulary.items():
        word = token.removesuffix("</w>").lstrip("\u2581\u0120")
        if word != token and len(word) > 1 and word.isascii() and word.isalpha() and word.islower():
            found[word] = number
    return found


def shared_words(vocabularies: Iterable[Mapping[str, int]]) -> tuple[list[str], list[list[int]]]:
    """(words that all have one token for, those tokens in each)."""
    found = [whole_words(vocabulary) for vocabulary in vocabularies]
    words = sorted(set.intersection(*map(set, found))) if found else []
    return words, [[tokens[word] for word in words] for tokens in found]
