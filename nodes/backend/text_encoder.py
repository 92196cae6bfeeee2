"""The text encoders of a CLIP: from prompts and token vectors to conditioning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch.utils._pytree import tree_map

from ...unlearn.core.conditioning import Conditioning
from ...unlearn.core.token_slots import (
    Vocabulary,
    beside,
    fill_with_two_fillers,
    shared_words,
    slot_positions,
)
from .read_depth import handed_on_besides
from .residency import Residency
from .words import encoder_names, part_named, tokenized


class TextEncoder:
    """Encodes as the stock CLIP Text Encode does, but takes prompts as plain words."""

    def __init__(self, clip, residency: Residency) -> None:
        self.clip, self.residency, self.device = clip, residency, residency.device

    @property
    def module(self) -> torch.nn.Module:
        return self.clip.cond_stage_model

    def encode(self, prompts: Sequence[str], one_a_token: Callable[[], bool]) -> Conditioning:
        """The conditioning of prompts, (N, tokens, width).

        one_a_token: returns whether the denoiser gets one vector for each token and nothing else.
        Then several prompts can be encoded at once.
        """
        tokens = [tokenized(self.clip, prompt) for prompt in prompts]
        return self.of_tokens(tokens, one_a_token)

    def of_tokens(self, tokens: list[dict], one_a_token: Callable[[], bool]) -> Conditioning:
        if len(tokens) > 1 and one_a_token() and _can_be_stacked(tokens):
            output = self._run(_stacked(tokens))
            cross = output.pop("cond").unflatten(1, (len(tokens), -1))[0]
            output.pop("pooled_output", None)
            if "attention_mask" in output:
                output["attention_mask"] = output["attention_mask"].view(len(tokens), -1)
            return self._on_device(cross, None, output)
        return Conditioning.cat([self.of_one(t) for t in tokens])

    def of_one(self, tokens: dict) -> Conditioning:
        """The conditioning of one prompt. Raises ValueError if the methods would lose a part."""
        output = self._run(tokens)
        check_output(output)
        return self._on_device(output.pop("cond"), output.pop("pooled_output", None), output)

    def batches(self, prompts: Sequence[str], tokens: int) -> list[list[int]]:
        """The numbers of prompts for `read`: equally long ones, at most so many tokens at once."""
        batches: list[list[int]] = []
        open_for: dict[object, list[int]] = {}
        for i, prompt in enumerate(prompts):
            read = tokenized(self.clip, prompt)
            lengths = tuple((name, len(sections[0])) for name, sections in read.items())
            longest = max(length for _, length in lengths)
            if not longest:  # Lens has no token for an empty prompt, and leaves its encoder out
                continue
            form = lengths if _is_plain(read) else i
            batch = open_for.get(form)
            if batch is None or (len(batch) + 1) * longest > tokens:
                batch = open_for[form] = []
                batches.append(batch)
            batch.append(i)
        return batches

    def read(self, prompts: Sequence[str]) -> None:
        """Run all text encoders on one of `batches`. What the host makes of their output is that of
        one prompt, so it is only for hooks on their layers."""
        tokens = [tokenized(self.clip, prompt) for prompt in prompts]
        check_output(self._run(_stacked(tokens) if len(tokens) > 1 else tokens[0]))

    def with_embeddings(
        self, sentences: Sequence[str], vectors: torch.Tensor, one_a_token: Callable[[], bool]
    ) -> Conditioning:
        """The conditioning of sentences with vectors (N or 1, tokens, width) in their slot.

        As for textual inversions, the host takes a vector in the place of a token's number. Raises
        ValueError if this text encoder takes none.
        """
        vectors = vectors.expand(len(sentences), -1, -1)
        tokens = [self._filled(*pair) for pair in zip(sentences, vectors)]
        try:
            return self.of_tokens(tokens, one_a_token)
        except (RuntimeError, ValueError) as error:
            # The host compares the first token of HunyuanVideo 1 with a number, and converts that
            # of Lens to one. Both fail for a vector.
            if not any(part in str(error) for part in ("Boolean value of", "can be converted to")):
                raise
            raise ValueError(
                "ComfyUI takes no vectors at the beginning of a prompt for this text encoder, so "
                "it can neither be attacked by words nor hardened."
            ) from error

    @torch.no_grad()
    def vocabulary(self) -> Vocabulary:
        """Words that are one token in every encoder, with their vectors of all encoders joined."""
        names = encoder_names(self.clip, self.clip.tokenize(""))
        words, numbers = shared_words(
            {token: i for i, token in part_named(self.clip.tokenizer, name).inv_vocab.items()}
            for name in names
        )
        # The layer is run, instead of reading its weight, because Gemma's layer scales the vectors.
        tables = [
            layer(torch.tensor(some, device=layer.weight.device).long(), out_dtype=torch.float32)
            for layer, some in zip(map(self._embedding, names), numbers)
        ]
        return beside(words, [table.to(self.device) for table in tables])

    def _filled(self, sentence: str, vectors: torch.Tensor) -> dict:
        """The tokens of a sentence with vectors (tokens, width) in its slot."""
        one, other = (
            tokenized(self.clip, text) for text in fill_with_two_fillers(sentence, len(vectors))
        )
        names = encoder_names(self.clip, one)
        widths = [self._embedding(name).weight.shape[1] for name in names]
        for name, part in zip(names, vectors.split(widths, 1)):
            flat = [(s, i) for s, section in enumerate(one[name]) for i in range(len(section))]
            ids = ([tokens[name][s][i][0] for s, i in flat] for tokens in (one, other))
            for place, vector in zip(slot_positions(*ids, len(vectors)), part):
                s, i = flat[place]
                one[name][s][i] = (vector, *one[name][s][i][1:])
        return one

    def _embedding(self, name: str) -> torch.nn.Module:
        """The token embedding layer of an encoder."""
        return part_named(self.module, name).transformer.get_input_embeddings()

    def _on_device(self, cross: torch.Tensor, pooled: torch.Tensor | None, extra: dict):
        """The conditioning on the denoiser's device. The host leaves it on the CPU."""
        found = {"cross": cross, "pooled": pooled, "extra": extra}
        return Conditioning(
            **tree_map(lambda x: x.to(self.device) if torch.is_tensor(x) else x, found)
        )

    def _run(self, tokens: dict) -> dict:
        self.residency.ready()
        clip = self.clip
        if self.residency.room:
            # Loading the encoder again would make the host fill the free room with weights.
            clip, patcher = copy(clip), clip.patcher
            clip.load_model = lambda tokens=None: patcher
        return clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)


def check_output(output: dict) -> None:
    """Raises ValueError if the methods would lose a part of an encoder's output."""
    if beyond := handed_on_besides(output):
        raise ValueError(
            f"What a prompt quotes is read by a text encoder of its own ({', '.join(beyond)}), "
            "and the methods here would lose that: leave the quotation marks out."
        )


def _stacked(tokens: list[dict]) -> dict:
    """The tokens of N prompts as one prompt of N sections, which the host encodes as one batch."""
    return {name: [t[name][0] for t in tokens] for name in tokens[0]}


def _can_be_stacked(tokens: list[dict]) -> bool:
    """Whether all prompts have one section, the same length, and no weights."""
    lengths = {len(sections[0]) for t in tokens for sections in t.values()}
    return len(lengths) == 1 and all(map(_is_plain, tokens))


def _is_plain(tokens: dict) -> bool:
    """Whether a prompt has one section for each encoder, and no weights."""
    return all(
        len(sections) == 1 and all(token[1] == 1.0 for token in sections[0])
        for sections in tokens.values()
    )
