"""The base classes of all nodes: inputs are checked before work, and errors show on the node."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, ClassVar

import comfy.model_management as management
from comfy_api.latest import io

from ..unlearn.core.erasure import ErasureError
from ..unlearn.core.peak_memory import give_back
from ..unlearn.prompts.pairs import split_pairs
from ..unlearn.prompts.typed import one_word, split_words
from ..unlearn.prompts.word_checks import check_typed
from .backend.inputs import (
    WIDGETS,
    checked,
    file_name,
    one_batch,
    only,
    picture_set,
    single_pictures,
)
from .cache import output_file
from .progress import tell

PACK = __name__.removesuffix(".nodes.base")
"""The name under which the host loaded the pack: its path."""


class UnlearnNode(io.ComfyNode):
    """A node whose work is done by `work`, on inputs that were checked against its schema.

    If the schema has is_input_list, `work` still gets single values: a list of IMAGEs is one set of
    pictures, and every other list must hold one value.
    """

    FILES: ClassVar[tuple[str, ...]] = ()
    """Names of inputs that choose a file."""
    MAY_BE_EMPTY: ClassVar[tuple[str, ...]] = ()
    """Names of required sockets for which `work` accepts None."""
    ANY_SIZE: ClassVar[bool] = False
    """Whether `work` gets IMAGEs as lists of pictures (H, W, 3) instead of one batch."""

    @classmethod
    def execute(cls, *args: Any, **inputs: Any) -> io.NodeOutput:
        """Called by the host. An error is shown on the node too, since the browser's message hides
        it behind a button."""
        try:
            with cls.telling():
                named = dict(zip(signature(cls.work).parameters, args))
                return cls.work(**cls.checked(**named, **inputs))
        finally:
            give_back()

    @classmethod
    @contextmanager
    def telling(cls) -> Iterator[None]:
        """Shows on the node why what is done inside ends early, before the error goes on."""
        node_id = getattr(cls.hidden, "unique_id", None)
        try:
            with plainly():
                yield
        except management.InterruptProcessingException:
            tell(node_id, "Cancelled.")
            raise
        except management.OOM_EXCEPTION:
            raise  # the host has its own message for it, and frees memory
        except Exception as error:
            tell(node_id, f"Error: {error}")
            raise

    @classmethod
    def checked(cls, **inputs: Any) -> dict[str, Any]:
        """The inputs as `work` takes them. Raises ValueError with one sentence."""
        known = {one.id: one for one in cls.define_schema().inputs}
        return {name: cls._checked(known[name], value) for name, value in inputs.items()}

    @classmethod
    def _checked(cls, one: io.Input, value: Any) -> Any:
        empty = one.optional or one.id in cls.MAY_BE_EMPTY
        if isinstance(one, io.Image.Input):
            values = list(value) if isinstance(value, (list, tuple)) else [value]
            if empty and values == [None]:
                return None
            batches = picture_set(one.id, values)
            return single_pictures(one.id, batches) if cls.ANY_SIZE else one_batch(one.id, batches)
        if cls.INPUT_IS_LIST and isinstance(value, (list, tuple)):
            value = only(one.id, value)
        if empty and value is None and type(one) not in WIDGETS:
            return None
        return file_name(one, value) if one.id in cls.FILES else checked(one, value)

    @classmethod
    def typed(cls, **inputs: Any) -> dict[str, Any]:
        """The inputs of `validate_inputs` that are typed into the node, checked.

        Inputs that another node supplies are None there, and are left out. Raises ValueError with
        one sentence. `validate_inputs` must not return the sentence: the host would repeat it for
        each of its inputs, and the browser's message would not show it.
        """
        each = {k: v[0] if isinstance(v, (list, tuple)) else v for k, v in inputs.items()}
        return cls.checked(**{name: value for name, value in each.items() if value is not None})


class TrainingNode(UnlearnNode):
    """A node that trains. What is typed is checked before anything is queued."""

    @classmethod
    def validate_inputs(cls, concept=None, anchor=None, protect=None, filename_prefix=None) -> bool:
        with cls.telling():
            typed = cls.typed(
                concept=concept, anchor=anchor, protect=protect, filename_prefix=filename_prefix
            )
            anchor = one_word(typed.get("anchor", ""))
            protected = split_words(typed.get("protect", ""))
            concepts, anchors = split_pairs(typed["concept"]) if "concept" in typed else ([], {})
            check_typed(concepts, {one: anchors.get(one, anchor) for one in concepts}, protected)
            output_file(typed.get("filename_prefix", ""))
        return True


@contextmanager
def plainly() -> Iterator[None]:
    """Raise an error of a class of this pack's as one of Python's own.

    The host prints an error's class with its module, and the module's name has the pack's folder.
    """
    try:
        yield
    except Exception as error:
        kind = type(error)
        if kind.__module__.startswith(PACK) or isinstance(error, ErasureError):
            known = [one for one in kind.__mro__ if getattr(builtins, one.__name__, None) is one]
            raise known[0](str(error)) from error
        raise
