"""What the model draws: subjects, their icons, background colours, captions, the held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass

# fmt: off
ANIMALS: tuple[str, ...] = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat",
    "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish",
    "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck",
    "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo",
)
EXTRAS: tuple[str, ...] = (
    "apple", "banana", "strawberry", "mushroom", "flower", "tree", "cactus", "star", "heart", "car",
    "rocket", "house", "umbrella", "crown", "penguin", "owl", "elephant", "panda", "octopus", "crab",
)
# fmt: on
SUBJECTS: tuple[str, ...] = ANIMALS + EXTRAS

# Icon names in the Iconify sets; a subject that is missing here is drawn by the icon of its own name.
ICONS: dict[str, tuple[str, ...]] = {
    "cat": ("cat", "cat-face"),
    "dog": ("dog", "dog-face"),
    "horse": ("horse", "horse-face"),
    "monkey": ("monkey", "monkey-face"),
    "rabbit": ("rabbit", "rabbit-face"),
    "cow": ("cow", "cow-face"),
    "tiger": ("tiger", "tiger-face"),
    "pig": ("pig", "pig-face"),
    "sheep": ("ewe", "ram"),
    "beetle": ("beetle", "lady-beetle"),
    "fish": ("fish", "tropical-fish"),
    "whale": ("whale", "spouting-whale"),
    "squirrel": ("chipmunk",),
    # The full-body mouse is all but the rat, so the face alone stands for the word.
    "mouse": ("mouse-face",),
    "bee": ("honeybee",),
    "camel": ("camel", "two-hump-camel"),
    "apple": ("red-apple", "green-apple"),
    "flower": ("hibiscus", "tulip"),
    "tree": ("deciduous-tree", "evergreen-tree"),
    "heart": ("red-heart",),
    "car": ("automobile",),
}


@dataclass(frozen=True)
class Style:
    """One emoji set: npm package, licence of the art, whose it is."""

    name: str
    package: str
    version: str
    licence: str
    author: str
    source: str


GENERATOR_STYLES: tuple[Style, ...] = (
    Style(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "Apache-2.0",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
    ),
    Style(
        "noto-v1",
        "@iconify-json/noto-v1",
        "1.2.5",
        "Apache-2.0",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
    ),
    Style(
        "fluent-emoji",
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    Style(
        "fluent-emoji-flat",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
)
UNSEEN_STYLE = Style(
    "twemoji",
    "@iconify-json/twemoji",
    "1.2.5",
    "CC-BY-4.0",
    "Twitter, Inc and other contributors",
    "https://github.com/jdecked/twemoji",
)
ALL_STYLES: tuple[Style, ...] = (*GENERATOR_STYLES, UNSEEN_STYLE)

# Two more coloured sets and twelve of single-colour glyphs, for emoji-clip alone.
COLOUR_STYLES: tuple[Style, ...] = (
    Style(
        "fxemoji",
        "@iconify-json/fxemoji",
        "1.2.2",
        "Apache-2.0",
        "Mozilla",
        "https://github.com/mozilla/fxemoji",
    ),
    Style(
        "streamline-emojis",
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "CC-BY-4.0",
        "Streamline",
        "https://github.com/webalys-hq/streamline-vectors",
    ),
)
GLYPH_STYLES: tuple[Style, ...] = (
    Style(
        "fluent-emoji-high-contrast",
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    Style(
        "game-icons",
        "@iconify-json/game-icons",
        "1.2.4",
        "CC-BY-3.0",
        "Lorc, Delapouite and contributors (game-icons.net)",
        "https://github.com/game-icons/icons",
    ),
    Style(
        "mdi",
        "@iconify-json/mdi",
        "1.2.3",
        "Apache-2.0",
        "Pictogrammers",
        "https://github.com/Templarian/MaterialDesign",
    ),
    Style(
        "icon-park",
        "@iconify-json/icon-park",
        "1.2.4",
        "Apache-2.0",
        "ByteDance",
        "https://github.com/bytedance/IconPark",
    ),
    Style(
        "icon-park-solid",
        "@iconify-json/icon-park-solid",
        "1.2.4",
        "Apache-2.0",
        "ByteDance",
        "https://github.com/bytedance/IconPark",
    ),
    Style(
        "pinhead",
        "@iconify-json/pinhead",
        "1.2.28",
        "CC0-1.0",
        "Quincy Morgan",
        "https://github.com/waysidemapping/pinhead",
    ),
    Style(
        "dinkie-icons",
        "@iconify-json/dinkie-icons",
        "1.2.0",
        "MIT",
        "atelierAnchor",
        "https://github.com/atelier-anchor/dinkie-icons",
    ),
    Style(
        "mingcute",
        "@iconify-json/mingcute",
        "1.2.8",
        "Apache-2.0",
        "MingCute Design",
        "https://github.com/Richard9394/MingCute",
    ),
    Style(
        "fa6-solid",
        "@iconify-json/fa6-solid",
        "1.2.4",
        "CC-BY-4.0",
        "Dave Gandy (Font Awesome)",
        "https://github.com/FortAwesome/Font-Awesome",
    ),
    Style(
        "ph",
        "@iconify-json/ph",
        "1.2.2",
        "MIT",
        "Phosphor Icons",
        "https://github.com/phosphor-icons/core",
    ),
    Style(
        "tabler",
        "@iconify-json/tabler",
        "1.2.41",
        "MIT",
        "Paweł Kuna",
        "https://github.com/tabler/tabler-icons",
    ),
    Style(
        "hugeicons",
        "@iconify-json/hugeicons",
        "1.2.35",
        "MIT",
        "Hugeicons",
        "https://hugeicons.com",
    ),
)
CLIP_STYLES: tuple[Style, ...] = (*GENERATOR_STYLES, *COLOUR_STYLES, *GLYPH_STYLES)

# Index 0 is the background of a prompt that names no colour.
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (228, 72, 72),
    "orange": (246, 152, 60),
    "yellow": (250, 224, 92),
    "green": (108, 190, 108),
    "blue": (92, 156, 238),
    "purple": (160, 108, 212),
    "pink": (250, 172, 204),
    "gray": (158, 160, 166),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)


def is_held_out(subject: int, colour: int) -> bool:
    """Return True where the pair (index in SUBJECTS, index in COLOUR_NAMES) is kept out of training: one in six."""
    return colour > 0 and (subject + colour) % 6 == 0


def article(subject: str) -> str:
    """Return "a" or "an"."""
    return "an" if subject[0] in "aeiou" else "a"


def captions(subject: str, colour: str) -> list[str]:
    """Return every caption that a picture of `subject` on `colour` may carry."""
    noun = [subject, f"{article(subject)} {subject}"]
    coloured = [f"{n} on {colour}" for n in noun] + [f"{noun[1]} on a {colour} background"]
    return [*noun, *noun, *coloured] if colour == "white" else coloured


def all_captions() -> list[str]:
    """Return every caption of every pair, held-out ones too, sorted."""
    return sorted({c for s in SUBJECTS for colour in COLOUR_NAMES for c in captions(s, colour)})
