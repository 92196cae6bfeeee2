"""A list of concepts with anchors, as it is typed."""

from __future__ import annotations

import pytest

from unlearn.methods.closed_form import ClosedFormSettings
from unlearn.methods.few_shot import FewShotSettings
from unlearn.prompts.pairs import split_pairs, with_pairs


@pytest.mark.parametrize(
    ("typed", "concepts", "anchors"),
    [
        ("fox", ["fox"], {}),
        ("fox -> koala", ["fox"], {"fox": "koala"}),
        ("fox->koala, owl", ["fox", "owl"], {"fox": "koala"}),
        ("owl\nred fox => grey wolf\n\nfox", ["owl", "red fox", "fox"], {"red fox": "grey wolf"}),
        ("fox \u2192 koala\nfox -> koala", ["fox"], {"fox": "koala"}),
        ('"Tom, Dick", owl', ["Tom, Dick", "owl"], {}),
    ],
)
def test_each_concept_may_name_its_anchor(
    typed: str, concepts: list[str], anchors: dict[str, str]
) -> None:
    assert split_pairs(typed) == (concepts, anchors)


def test_a_thousand_lines_are_read() -> None:
    lines = [f"Zorvik {i} -> Mirabo {i}" if i % 2 else f"Zorvik {i}" for i in range(1000)]
    concepts, anchors = split_pairs("\n".join(lines))
    assert concepts == [f"Zorvik {i}" for i in range(1000)]
    assert anchors == {f"Zorvik {i}": f"Mirabo {i}" for i in range(1, 1000, 2)}


def test_the_others_keep_the_anchor_of_the_settings() -> None:
    settings = ClosedFormSettings(anchor="bear")
    assert with_pairs(settings, ["fox", "owl"], {}) is settings
    found = with_pairs(settings, ["fox", "owl"], {"fox": "koala"})
    assert found.anchor == {"fox": "koala", "owl": "bear"}


def test_a_method_without_anchors_takes_no_arrow() -> None:
    with pytest.raises(ValueError, match="leave the arrows out"):
        with_pairs(FewShotSettings(mode="paper"), ["fox"], {"fox": "koala"})


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("fox -> ", "no anchor behind its arrow"),
        ("-> koala", "no concept before its arrow"),
        ("fox -> owl -> koala", "more than one arrow"),
        ("fox -> koala, fox -> owl", "has two anchors, 'koala' and 'owl'"),
        ("Fox -> fox", "is the concept itself"),
        ("(fox:1.3) -> koala", "holds a weight"),
        ("\n \n,,\n", "No concept is named"),
        ("fox -> koala, a photo of a fox sitting on a bench", "looks like a whole prompt"),
    ],
)
def test_what_cannot_be_read_gets_one_sentence(typed: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        split_pairs(typed)
    assert "\n" not in str(error.value)
