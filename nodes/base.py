"""The door of every node: what comes in is checked before any work, and an error is said in the
node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, ClassVar

import comfy.model_management as management
from comfy_api.latest import io

from ..unlearn.core.erasure import ErasureError
from ..unlearn.prompts.typed import one_word, split_concepts, split_words
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
from .backend.memory import give_back
from .cache import output_file
from .progress import tell


class UnlearnNode(io.ComfyNode):
    """A node that does its work in `work`, on inputs that fit its own schema.

    Where the schema says is_input_list, `work` still gets single values: a list of IMAGEs is one
    set of pictures, and of everything else a list may hold one value.
    """

    FILES: ClassVar[tuple[str, ...]] = ()
    """Inputs that are a choice among files."""
    MAY_BE_EMPTY: ClassVar[tuple[str, ...]] = ()
    """Required sockets of which `work` takes None, too."""
    ANY_SIZE: ClassVar[bool] = False
    """Whether IMAGEs come as lists of single pictures (H, W, 3), in place of one batch."""

    @classmethod
    def execute(cls, *args: Any, **inputs: Any) -> io.NodeOutput:
        """What the host calls. An error also goes on the node: the browser's message does not show
        it, but hides it behind a button."""
        node_id = cls.hidden.unique_id
        try:
            with plainly():
                named = dict(zip(signature(cls.work).parameters, args))
                return cls.work(**cls.checked(**named, **inputs))
        except management.InterruptProcessingException:
            tell(node_id, "Cancelled.")
            raise
        except management.OOM_EXCEPTION:
            raise  # The host has its own words for it, and makes room.
        except Exception as error:
            tell(node_id, f"Error: {error}")
            raise
        finally:
            give_back()

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
        """Of what `validate_inputs` is given, what is typed into the node, checked.

        What another node hands on is None there, and left out. Raises ValueError with one sentence.
        It is raised and not returned: the host repeats what is returned for every input that
        `validate_inputs` names, and the browser's message then lacks the sentence.
        """
        each = {k: v[0] if isinstance(v, (list, tuple)) else v for k, v in inputs.items()}
        return cls.checked(**{name: value for name, value in each.items() if value is not None})


class TrainingNode(UnlearnNode):
    """A node that trains: what can be known of its inputs before anything is queued."""

    @classmethod
    def validate_inputs(cls, concept=None, anchor=None, protect=None, filename_prefix=None) -> bool:
        typed = cls.typed(
            concept=concept, anchor=anchor, protect=protect, filename_prefix=filename_prefix
        )
        anchor, protected = one_word(typed.get("anchor", "")), split_words(typed.get("protect", ""))
        concepts = split_concepts(typed["concept"]) if "concept" in typed else []
        check_typed(concepts, anchor, protected)
        output_file(typed.get("filename_prefix", ""))
        return True


@contextmanager
def plainly() -> Iterator[None]:
    """The host prints the class of an error with its module, and that with the pack's folder."""
    try:
        yield
    except ErasureError as error:
        raise ValueError(str(error)) from error
