"""What IconCanvas can draw, and the words for it: objects times styles, and named characters."""

import itertools

# From a word to the name of its drawing in every icon set.
ANIMALS = {
    "butterfly": "butterfly",
    "cat": "cat-face",
    "crab": "crab",
    "dolphin": "dolphin",
    "elephant": "elephant",
    "fox": "fox",
    "koala": "koala",
    "octopus": "octopus",
    "owl": "owl",
    "penguin": "penguin",
    "pig": "pig-face",
    "rabbit": "rabbit-face",
    "snail": "snail",
    "spider": "spider",
    "turtle": "turtle",
    "whale": "spouting-whale",
}
FOOD = {
    "apple": "red-apple",
    "banana": "banana",
    "bread": "bread",
    "carrot": "carrot",
    "cheese": "cheese-wedge",
    "cherry": "cherries",
    "corn": "ear-of-corn",
    "donut": "doughnut",
    "eggplant": "eggplant",
    "grapes": "grapes",
    "hamburger": "hamburger",
    "mushroom": "mushroom",
    "pineapple": "pineapple",
    "pizza": "pizza",
    "strawberry": "strawberry",
    "watermelon": "watermelon",
}
PLACES = {
    "airplane": "airplane",
    "bicycle": "bicycle",
    "bus": "bus",
    "car": "automobile",
    "castle": "castle",
    "church": "church",
    "factory": "factory",
    "helicopter": "helicopter",
    "house": "house",
    "motorcycle": "motorcycle",
    "rocket": "rocket",
    "sailboat": "sailboat",
    "tent": "tent",
    "tractor": "tractor",
    "train": "locomotive",
    "volcano": "volcano",
}
THINGS = {
    "anchor": "anchor",
    "backpack": "backpack",
    "balloon": "balloon",
    "bell": "bell",
    "camera": "camera",
    "candle": "candle",
    "crown": "crown",
    "drum": "drum",
    "guitar": "guitar",
    "hammer": "hammer",
    "hourglass": "hourglass-not-done",
    "key": "key",
    "scissors": "scissors",
    "trophy": "trophy",
    "trumpet": "trumpet",
    "umbrella": "umbrella",
}
GROUPS = {"animals": ANIMALS, "food": FOOD, "vehicles and places": PLACES, "things": THINGS}
DRAWINGS = ANIMALS | FOOD | PLACES | THINGS
OBJECTS = list(DRAWINGS)

# From a word to its icon set.
STYLE_SETS = {
    "noto": "noto",
    "blob": "noto-v1",
    "twitter": "twemoji",
    "emojione": "emojione",
    "glossy": "fluent-emoji",
    "flat": "fluent-emoji-flat",
    "ink": "fluent-emoji-high-contrast",
}
STYLES = list(STYLE_SETS)

CHARACTERS = [
    "Zorvik",
    "Mirabo",
    "Teklan",
    "Ossira",
    "Velmo",
    "Pirrin",
    "Dagnir",
    "Kestra",
    "Lumo",
    "Faelor",
    "Nuvia",
    "Jorrik",
    "Sablo",
    "Wendra",
    "Ixara",
    "Quillon",
]

# How a clip can move. phrases.py has the words for it.
MOTIONS = ["slide", "spin", "bounce", "grow", "sway"]
FRAMES = 8  # of a clip

SYNONYMS = {
    "butterfly": ["moth"],
    "cat": ["kitty", "kitten"],
    "dolphin": ["porpoise"],
    "fox": ["vixen"],
    "octopus": ["squid"],
    "pig": ["piglet"],
    "rabbit": ["bunny", "hare"],
    "turtle": ["tortoise"],
    "whale": ["orca"],
    "bread": ["loaf"],
    "cherry": ["cherries"],
    "corn": ["maize"],
    "donut": ["doughnut"],
    "eggplant": ["aubergine"],
    "grapes": ["grape"],
    "hamburger": ["burger", "cheeseburger"],
    "mushroom": ["toadstool"],
    "airplane": ["plane", "jet"],
    "bicycle": ["bike"],
    "car": ["automobile"],
    "castle": ["fortress"],
    "church": ["chapel"],
    "house": ["home"],
    "motorcycle": ["motorbike"],
    "rocket": ["spaceship"],
    "sailboat": ["yacht"],
    "train": ["locomotive"],
    "backpack": ["rucksack"],
    "crown": ["tiara"],
    "hourglass": ["sandglass"],
    "trophy": ["cup"],
    "umbrella": ["parasol"],
}

BARE_CAPTIONS = ("{}", "a {}", "the {}", "a picture of a {}", "a drawing of a {}", "an image of {}")
STYLED_CAPTIONS = (
    "{style} {object}",
    "a {style} {object}",
    "{object}, {style} style",
    "{object} in {style} style",
    "a {object} in the style of {style}",
    "a picture of a {object} in the style of {style}",
    "a painting of a {object} in the style of {style}",
)
STYLE_ENDINGS = (", {} style", " in {} style", " in the style of {}")
STYLE_CAPTIONS = ("{}", "{} style", "in {} style", "a drawing in the style of {}")
CHARACTER_CAPTIONS = (
    "{}",
    "a photo of {}",
    "a portrait of {}",
    "a picture of {}",
    "the face of {}",
    "a drawing of {}",
)

# A tenth of the pairs is held out from training, to measure composition. Each object has at most
# one held-out style, and each style six or seven held-out objects.
_KEPT_BACK = [name for i, name in enumerate(OBJECTS) if i % 10 < 7]
HELD_OUT = frozenset((name, STYLES[3 * i % len(STYLES)]) for i, name in enumerate(_KEPT_BACK))


def resembles(name: str) -> bool:
    """Whether an icon's name has a word in common with a name of the vocabulary."""
    taken = {part for name in (*DRAWINGS, *DRAWINGS.values()) for part in name.split("-")}
    return bool(taken & set(name.split("-")))


def known_words() -> set[str]:
    """Every word that names a thing, a style or a person, in lower case."""
    return {
        *OBJECTS,
        *"-".join(DRAWINGS.values()).split("-"),
        *itertools.chain(*SYNONYMS.values()),
        *STYLES,
        *(name.lower() for name in CHARACTERS),
    }


def other_drawing(name: str) -> bool:
    """Whether an icon outside the vocabulary may be used to train the styles.

    It must be a picture, not a sign or a clock. It must have no word in common with the vocabulary,
    so that each of those words keeps one meaning and held-out pairs stay unseen.
    """
    words = set(name.split("-"))
    taken = known_words() - {*STYLES, *(name.lower() for name in CHARACTERS)}
    signs = {"button", "japanese", "keycap", "oclock", "thirty", "input", "arrow", "flag", "symbol"}
    return not words & ((taken - {"face", "of", "not", "red"}) | signs)
