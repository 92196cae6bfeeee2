"""The parts of the sentences that IconCanvas is taught: frames, clauses, quality words, joints.

Every list is split by `seen` and `held_out`: a tenth of it is never trained on, so that the
benchmark can ask for things in sentences that are new to the model.
"""

# In place of a name. Each draws any object, or any person.
ANY_OBJECT = ("picture", "thing", "object")
ANY_PERSON = ("person",)
ANY_STYLE = "plain"  # in place of a style: any style

# Sentences about a thing: {x} is it with its article ("a red fox", "two foxes", "a fox and an
# owl"), {n} is it without one.
FRAMES = (
    "{x}",
    "{n}",
    "draw {x}",
    "draw me {x}, please",
    "I want a picture of {x}",
    "I would like to see {x}",
    "please make an image with {x} in it",
    "can you draw {x} for me?",
    "show me {x}",
    "just {x}, nothing else",
    "only {x} in the middle of the picture",
    "a sticker of {x}",
    "an emoji of {x}",
    "an icon that shows {x}",
    "a logo with {x}",
    "a simple drawing of {x}",
    "a small illustration of {x}",
    "clip art of {x}",
    "a card with {x} on it",
    "a poster of {x}",
    "there is {x} in front of us",
    "here you see {x}",
    "look, {x}!",
    "look at this {n}",
    "what we saw was {x}",
    "this {n} is my favourite",
    "our own {n}",
    "my {n}",
    "that {n} over there",
    "the {n} that we talked about",
    "a painting with {x} as its subject",
    "a children's book with {x} on the cover",
    "an image showing {x}",
    "{x} on a white background",
    "{x} against a plain wall",
    "{x} in the middle of nowhere",
    "{x}, isolated",
    "{x}, centred, seen from the front",
    "{x} at night",
    "{x} in the morning light",
    "{x} for a greeting card",
    "{x} as everybody knows it",
    "{x} that nobody has seen before",
    "a T-shirt with {x} printed on it",
    "my daughter drew {x} yesterday",
    "somebody left {x} on the table",
    "once upon a time there was {x}",
    "every story needs {x}",
    "a dream about {x}",
    "the best {n} in the world",
    "an old photograph of {x}",
    "a close look at {x}",
    "nothing is as good as {x}",
    "today I thought of {x}",
    "a stamp with {x}",
    "the perfect {n}",
    "a picture book page with {x}",
    "we need {x} for our website",
    "an unusual view of {x}",
    "guess what, it is {x}",
)

# Clauses that follow or precede a sentence and ask for nothing. Some name a thing as a place.
CLAUSES = (
    "with nothing around it",
    "on a sunny day",
    "as if it were new",
    "which I like very much",
    "because it makes me happy",
    "ready for print",
    "for my little brother",
    "that grows behind our house",
    "which stands near the church",
    "that we saw from the train",
    "next to nothing at all",
    "the kind you remember",
    "in soft light",
    "with clean lines",
    "without any text",
    "without a frame",
    "somewhere far away",
    "as we found it last summer",
    "on the way to the castle",
    "drawn by hand",
    "made for everybody",
    "with a lot of care",
    "in a calm mood",
    "behind the old factory",
    "just like last time",
    "before the rain came",
    "seen through a window",
    "that somebody forgot in the bus",
    "as large as life",
    "and that is all",
    "while everyone was asleep",
    "which my friend described to me",
    "under a grey sky",
    "that came by car this morning",
    "to put on the door of our tent",
    "with warm colours",
    "like in the old books",
    "and please keep it simple",
    "from a journey to the north",
    "as a present for my mother",
)

QUALITY = (
    "best quality",
    "masterpiece",
    "highly detailed",
    "8k",
    "sharp focus",
    "award winning",
    "trending",
    "ultra detailed",
    "professional",
    "beautiful",
    "high resolution",
    "clean",
    "vivid",
    "very aesthetic",
    "detailed",
    "4k uhd",
    "absurdres",
    "intricate",
    "elegant",
    "studio lighting",
)

# True of any drawing.
ADJECTIVES = (
    "nice",
    "cute",
    "tiny",
    "little",
    "big",
    "lovely",
    "pretty",
    "simple",
    "famous",
    "ordinary",
    "single",
    "fine",
    "strange",
    "friendly",
    "old",
    "new",
    "great",
    "favourite",
    "small",
    "funny",
)

# Two things side by side, the left one first. A bare "with" is no joint: "an image with a fox in
# it" shows one thing.
JOINTS = (
    "{a} and {b}",
    "{a} next to {b}",
    "{a} beside {b}",
    "{a} along with {b}",
    "{a}, {b}",
    "{a} together with {b}",
    "both {a} and {b}",
    "{a} on the left and {b} on the right",
    "{a} to the left of {b}",
    "{a} side by side with {b}",
    "{a} as well as {b}",
    "{a} plus {b}",
)

# How often a caption leaves out a style's name, against the other styles. Pictures of no named
# style came out as flat or noto too often and hardly ever as glossy.
UNNAMED = {"flat": 0.4, "noto": 0.6, "glossy": 2.0}

# How a sentence names a style: {core} is the sentence without it.
STYLED = (
    "{core}, {style} style",
    "{core} in {style} style",
    "{core} in the style of {style}",
    "{core}, {style}",
    "{core}, drawn in {style} style",
    "{core}, as {style} drawing",
    "{core} as a {style} drawing",
    "{style} style, {core}",
    "in {style} style, {core}",
    "{style} style: {core}",
    "{core}, {style} emoji style",
    "{core}. Style: {style}",
)

# Nothing but a style.
STYLE_ALONE = (
    "{style}",
    "{style} style",
    "in {style} style",
    "something in {style} style",
    "a drawing in the style of {style}",
    "anything, {style} style",
    "{style} drawing",
)

# Three wordings of each motion. They come last in a caption.
MOTION_WORDS = {
    "slide": ("slide", "sliding", "moving sideways"),
    "spin": ("spin", "spinning", "turning around"),
    "bounce": ("bounce", "bouncing", "jumping up and down"),
    "grow": ("grow", "growing", "getting larger"),
    "sway": ("sway", "swaying", "rocking to and fro"),
}

# Not moving is asked for by naming no motion, or so.
STILL = ("standing still", "still", "not moving")


def held_out(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Every tenth part, from the seventh on: never trained on."""
    return parts[6::10]


def seen(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for i, part in enumerate(parts) if i % 10 != 6)
