"""What a prompt says is in the picture, and how well the boxes of a detector agree with it. No model, no tensors.

The grammar, for prompts such as "two red apples to the left of a bowl, and a cat":

- A prompt is phrases between separators: commas and the like, "and", "with", some verbs ("riding", "sitting", …),
  and words of place. A determiner or a number inside a phrase begins another one.
- A phrase is [number or determiner] adjectives noun; what is left without the first is the object's name, and is
  looked for as it stands, adjectives included.
- What follows "in", "on", "of" and the like describes the scene, up to the next separator, and is not looked for:
  "a cat on blue" names one object. So is an opening "a photo of".
- "left of", "right of", "above", "below" and "next to", with their variants, are relations between the object named
  before and the one named after. "behind" and "in front of" cannot be seen from boxes, and only separate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom, in any unit that is the same for both axes; y grows downwards."""

DUPLICATE_OVERLAP = 0.5
"""Two boxes of one name that overlap (IoU) by more than this are the same object."""

RELATED_OVERLAP = 0.1
"""Two objects that overlap (IoU) by this or more stand in no relation (T2I-CompBench's threshold)."""

BROKEN_RELATION = 0.5
"""What a relation that does not hold leaves of the reward, so that both objects in the wrong places still earn more
than one object."""

_NUMBERS = {
    **dict.fromkeys(("a", "an", "the", "some", "another", "one"), 1),
    **{word: n for n, word in enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 2)},
}
_PREPOSITIONS = ("in", "on", "onto", "at", "of", "from", "to", "for", "by", "against", "into", "through", "during")
_SCENE_WORDS = frozenset({*_PREPOSITIONS, "is", "are", "that", "which", "who", "it", "them", "him", "her", "each"})
_OPENING = re.compile(
    r"^\s*(?:(?:an?|the)\s+)?(?:[\w-]+\s+){0,2}?"
    r"(?:photo|photograph|picture|image|painting|drawing|sketch|illustration|rendering|portrait)\s+of\s+",
    re.IGNORECASE,
)
_SEPARATORS = re.compile(
    r"""
    (?<![\w-])(?:
        (?P<left_of>  (?:(?:to|on|at)\s+the\s+)?left(?:\s+side)?\s+of )
      | (?P<right_of> (?:(?:to|on|at)\s+the\s+)?right(?:\s+side)?\s+of )
      | (?P<above>    on\s+(?:the\s+)?top\s+of | above | over )
      | (?P<below>    below | under | underneath | beneath )
      | (?P<next_to>  next\s+to | on\s+the\s+side\s+of | beside | alongside | near )
      | and | with | in\s+front\s+of | behind | inside
      | sitting | standing | lying | riding | holding | eating | wearing | playing | washing | chasing | carrying
    )(?![\w-])
    | [,;:.&+]
    """,
    re.IGNORECASE | re.VERBOSE,
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class NamedObject:
    """An object that a prompt names, `count` times."""

    name: str
    count: int = 1


@dataclass(frozen=True)
class Relation:
    """`first` stands in a relation to `second`; both are indices into the scene's objects.

    Kinds: left_of, right_of, above, below, next_to.
    """

    kind: str
    first: int
    second: int


@dataclass(frozen=True)
class Scene:
    """What a prompt says is in the picture."""

    objects: tuple[NamedObject, ...]
    relations: tuple[Relation, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names, each once, in the prompt's order."""
        return tuple(dict.fromkeys(named.name for named in self.objects))


@dataclass(frozen=True)
class Detection:
    """A box that a detector gave for a name, with its confidence in [0, 1]."""

    confidence: float
    box: Box


def parse_scene(prompt: str, vocabulary: Sequence[str] = ()) -> Scene:
    """Read the objects and relations of a prompt; without any where it names no object.

    Args:
        prompt: The prompt, in English.
        vocabulary: Names to look for, as whole words, also in the plural with -s or -es; the longest wins.
            Without, every phrase names an object.
    """
    objects: list[NamedObject] = []
    relations: list[Relation] = []
    pending: str | None = None
    for relation, segment in _split(_OPENING.sub("", prompt)):
        pending = relation or pending
        found = list(_find_known(segment, vocabulary) if vocabulary else _find_phrases(segment))
        if found and objects and pending:
            relations.append(Relation(pending, len(objects) - 1, len(objects)))
        if found:
            pending = None
        objects += found
    return Scene(tuple(objects), tuple(relations))


def _split(prompt: str) -> Iterator[tuple[str | None, str]]:
    """Return the text between separators, each with the relation before it."""
    relation, start = None, 0
    for separator in _SEPARATORS.finditer(prompt):
        yield relation, prompt[start : separator.start()]
        relation, start = separator.lastgroup, separator.end()
    yield relation, prompt[start:]


def _find_phrases(segment: str) -> Iterator[NamedObject]:
    words: list[str] = []
    count = 1
    for word in _WORD.findall(segment.lower()):
        if word in _SCENE_WORDS:
            break
        number = _number(word)
        if number is None:
            words.append(word)
            continue
        if words:
            yield NamedObject(" ".join(words), count)
        words, count = [], number
    if words:
        yield NamedObject(" ".join(words), count)


def _find_known(segment: str, vocabulary: Sequence[str]) -> Iterator[NamedObject]:
    names = {name.lower(): name for name in sorted(vocabulary, key=len, reverse=True)}
    pattern = rf"\b({'|'.join(map(re.escape, names))})(?:es|s)?\b"
    start = 0
    for match in re.finditer(pattern, segment.lower()):
        numbers = [n for word in _WORD.findall(segment[start : match.start()].lower()) if (n := _number(word))]
        yield NamedObject(names[match[1]], numbers[-1] if numbers else 1)
        start = match.end()


def _number(word: str) -> int | None:
    if word in _NUMBERS:
        return _NUMBERS[word]
    return int(word) if re.fullmatch(r"[1-9]\d?", word) else None


def score_scene(scene: Scene, detections: Mapping[str, Sequence[Detection]]) -> float:
    """Return how well detections agree with a scene, in [0, 1].

    The mean confidence over all the objects that the prompt names (Pinterest's composition reward, arXiv 2401.12244),
    an object that is not found counting 0 and one named "two" counting twice, times the mean over the relations of 1
    where it holds and `BROKEN_RELATION` where it does not.

    Args:
        scene: With at least one object.
        detections: The boxes found for each of `scene.names`; a name may be missing.
    """
    wanted = {name: sum(named.count for named in scene.objects if named.name == name) for name in scene.names}
    picked = {name: pick_instances(detections.get(name, ()), count) for name, count in wanted.items()}
    confidence = sum(one.confidence for found in picked.values() for one in found) / sum(wanted.values())
    if not scene.relations:
        return confidence
    kept = 0.0
    for relation in scene.relations:
        first, second = (picked[scene.objects[index].name] for index in (relation.first, relation.second))
        kept += 1.0 if _holds_somewhere(relation.kind, first, second) else BROKEN_RELATION
    return confidence * kept / len(scene.relations)


def pick_instances(detections: Sequence[Detection], count: int) -> list[Detection]:
    """Return the `count` most confident detections of one name that are different objects, or as many as there are."""
    picked: list[Detection] = []
    for candidate in sorted(detections, key=lambda one: -one.confidence):
        if len(picked) == count:
            break
        if all(overlap(candidate.box, other.box) <= DUPLICATE_OVERLAP for other in picked):
            picked.append(candidate)
    return picked


def _holds_somewhere(kind: str, firsts: Sequence[Detection], seconds: Sequence[Detection]) -> bool:
    return any(holds(kind, one.box, other.box) for one in firsts for other in seconds if one is not other)


def holds(kind: str, first: Box, second: Box) -> bool:
    """Return whether the first box stands in a relation to the second.

    The rules of T2I-CompBench (arXiv 2307.06350, section 4.2): the centres differ in the named direction, and more
    along that axis than along the other; for "next to" they are near each other, here: the gap between the boxes is no
    wider than the longest side of the two. Boxes with an overlap of `RELATED_OVERLAP` or more stand in no relation.
    """
    if overlap(first, second) >= RELATED_OVERLAP:
        return False
    right = (second[0] + second[2] - first[0] - first[2]) / 2
    down = (second[1] + second[3] - first[1] - first[3]) / 2
    if kind == "next_to":
        gap = max(first[0] - second[2], second[0] - first[2], first[1] - second[3], second[1] - first[3])
        return gap <= max(max(box[2] - box[0], box[3] - box[1]) for box in (first, second))
    towards, aside = {
        "left_of": (right, down),
        "right_of": (-right, down),
        "above": (down, right),
        "below": (-down, right),
    }[kind]
    return towards > abs(aside)


def overlap(first: Box, second: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)
