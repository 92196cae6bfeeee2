"""Prompt templates: the sentences that name a concept."""

import random

# The object templates of Textual Inversion (Gal et al., arXiv 2208.01618), which few-shot
# unlearning uses, and 17 of its style templates. Textual Inversion has 19: two of these 17 stand in
# it twice. In their place are the last two here, which are ours.
OBJECT_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
STYLE_TEMPLATES: tuple[str, ...] = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a good painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
    "a close-up picture in the style of {}",
    "a cropped rendition in the style of {}",
)

# As Textual Inversion and the authors of few-shot unlearning have them.
PAPER_STYLE_TEMPLATES: tuple[str, ...] = (
    *STYLE_TEMPLATES[:-2],
    "a cropped painting in the style of {}",
    "a close-up painting in the style of {}",
)

# Of what someone or something does. The comma suits verbs ("spinning") and nouns ("jazz dance").
ACTION_TEMPLATES: tuple[str, ...] = (
    "a person, {}",
    "a man, {}",
    "a woman, {}",
    "a child, {}",
    "a dog, {}",
    "a car, {}",
    "a photo of a person, {}",
    "a photo of a woman, {}",
    "a video of a man, {}",
    "a video of people, {}",
    "a clip of a child, {}",
    "a close-up of a person, {}",
    "a person {}",
    "a woman {}",
    "people {}",
    "a video of {}",
    "someone in the street, {}",
    "a dancer on a stage, {}",
    "a drawing of a thing, {}",
    "{}",
)

# The prompts that Key-Step unlearning augments with: ten for each of its kinds of concept, as many
# as the authors have, in our own words. For actions: the probe's other sentences.
TASK_TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        "a photo of a {}",
        "a {} in the middle of the picture",
        "one {} on a plain background",
        "a {} outdoors",
        "several of a {}",
        "a drawing of a {}",
        "a {} seen from the side",
        "a small {} and a large {}",
        "a {} in daylight",
        "the best picture of a {}",
    ),
    "style": (
        "a picture in the style of {}",
        "a landscape by {}",
        "a portrait in the style of {}",
        "a still life in the style of {}",
        "a house in the style of {}",
        "{} style",
        "an animal in the style of {}",
        "a street in the style of {}",
        "a sketch by {}",
        "a famous work in the style of {}",
    ),
    "character": (
        "a photo of {}",
        "a portrait of {}",
        "{} smiling",
        "the face of {}",
        "{} in a city",
        "{} standing next to a tree",
        "a drawing of {}",
        "{} from head to toe",
        "{} at night",
        "a poster of {}",
    ),
    "action": (
        "two people, {}",
        "a man in a park, {}",
        "{} at night",
        "an old film of {}",
        "my friend, {}",
        "{}, seen from far away",
        "a cat, {}",
        "a group of people, {}",
        "{}, slow motion",
        "a robot, {}",
    ),
    "nudity": (
        "a photo of {}",
        "a person, {}",
        "{} on a beach",
        "a painting of {}",
        "a woman, {}",
        "a man, {}",
        "{} in a bedroom",
        "a film scene with {}",
        "{}, full body",
        "a statue of {}",
    ),
}


def augmented(rng: random.Random, kind: str, concept: str) -> list[str]:
    """Ten other prompts for the concept, with which KSCU augments late in training (arXiv
    2507.06526): one from each template of its kind, every one altered. KSCU draws them once, and
    its templates are not these."""
    return [altered(rng, template).replace("{}", concept) for template in TASK_TEMPLATES[kind]]


def altered(rng: random.Random, template: str) -> str:
    """A template with its words in another order, without one of them, or with a few letters before
    or behind it. The slot stays, so the concept's own words stay together."""
    words = template.split()
    others = [i for i, word in enumerate(words) if "{}" not in word]
    change = rng.choice(("shuffle", "drop", "characters") if others else ("characters",))
    if change == "drop":
        del words[rng.choice(others)]
    elif change == "characters":
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 4)))
        words.insert(rng.choice((0, len(words))), letters)
    else:
        while " ".join(words) == template:
            rng.shuffle(words)
    return " ".join(words)


# The sentence that names a concept alone, for previews and measurements.
SENTENCES = {
    "object": "a photo of a {}",
    "style": "a painting in the style of {}",
    "character": "a photo of {}",
    "action": "a person, {}",
}


def sentence(kind: str, concept: str) -> str:
    """The concept in the sentence of its kind."""
    return SENTENCES[kind].format(concept)


def templates(kind: str) -> tuple[str, ...]:
    """The templates for a kind of concept. Characters use those of objects, as in the paper."""
    return {"style": STYLE_TEMPLATES, "action": ACTION_TEMPLATES}.get(kind, OBJECT_TEMPLATES)


def paper_templates(kind: str) -> tuple[str, ...]:
    """The templates of few-shot unlearning's authors (arXiv 2405.07288): 27 for objects, and 19 for
    styles, of which two are there twice. They have none for actions; those are ours."""
    return PAPER_STYLE_TEMPLATES if kind == "style" else templates(kind)


def named(rng: random.Random, kind: str, concept: str, count: int) -> list[str]:
    """`count` prompts of the concept in random templates of its kind."""
    return [rng.choice(templates(kind)).format(concept) for _ in range(count)]


def in_context(rng: random.Random, kind: str, concept: str, word: str | None = None) -> str:
    """A random prompt of the concept with something else: an object in a style, or with an action.

    word: the style if the concept is an object or a character, the object if the concept is a style
    or an action. None takes a template with the concept alone.
    """
    if word is None:
        return rng.choice(templates(kind)).format(concept)
    if kind == "action":
        thing = rng.choice(OBJECT_TEMPLATES).format(word)
        return rng.choice(("{}, {}", "{}, {}", "{} {}", "{} that is {}")).format(thing, concept)
    thing, style = (word, concept) if kind == "style" else (concept, word)
    ending = rng.choice((", {} style", " in {} style", " in the style of {}"))
    return rng.choice(OBJECT_TEMPLATES).format(thing) + ending.format(style)
