"""Pictures and captions that are drawn here: real RGB with several labels, no file, no network.

A picture shows up to three kinds of figures, one to three of each, in colours, sizes, places and
angles of their own, on a ground that may have a pattern. Figures and patterns are the labels;
colour, place, size and number are not, though captions speak of them as people would. Captions
paraphrase ("a form with three corners") and now and then leave a figure unnamed.
"""

import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import PIL
from annotated_types import Len, MinLen
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from typing_extensions import TypedDict

from datamodules.cache import build_once
from datamodules.cross_modal_items import CrossModalItems
from datamodules.pictures import is_picture, read_picture
from datamodules.settings import read_table

T = TypeVar("T")
log = logging.getLogger(__name__)

CAPTIONS = Path(__file__).with_name("captions.yaml")
SUPERSAMPLING = 4
UNNAMED = 0.1  # share of figures that a caption calls things

Label = Literal[
    "circle", "triangle", "square", "star", "cross", "ring", "heart", "stripes", "dots", "checks"
]  # fmt: skip
CLASSES: tuple[str, ...] = get_args(Label)
FIGURES, PATTERNS = CLASSES[:7], CLASSES[7:]

Phrase = Annotated[tuple[str, ...], Len(1, 3)]
"""One figure, several, and what follows: "two red FORMS with three corners"."""
Words = Annotated[tuple[str, ...], MinLen(1)]


class Colour(TypedDict):
    """Words for a colour, and the colour."""

    words: Words
    rgb: tuple[int, int, int]


class Captions(TypedDict):
    """What stands in captions.yaml."""

    paraphrases: dict[Label, tuple[Phrase, ...]]
    names: dict[Label, tuple[Phrase, ...]]
    unnamed: tuple[Phrase, ...]
    colours: tuple[Colour, ...]
    grounds: tuple[Colour, ...]
    numbers: dict[int, Words]
    sizes: dict[Literal["small", "medium", "large"], Words]
    places: tuple[tuple[Words, Words, Words], ...]
    surfaces: Words
    covered: Words
    sentences: Words
    empty_sentences: Words


@cache
def _captions() -> Captions:
    table: Captions = read_table(CAPTIONS, Captions, ("figures", "ground"))
    return table


def _phrases(label_words: bool) -> Mapping[Any, tuple[Phrase, ...]]:
    return _captions()["names" if label_words else "paraphrases"]


def render(
    count: int = 6000,
    size: int = 32,
    seed: int = 1,
    label_words_in_captions: bool = False,
    cache_dir: str | None = None,
) -> CrossModalItems:
    """Draw pictures and write their captions; the same for the same arguments, on every machine.

    An item depends on its number, the seed and the size alone: more items leave those before as
    they are. Texts are bags of words over `vocabulary`.

    Args:
        count: Items, at least 1.
        size: Height and width in pixels, at least 16.
        seed: Of everything that is drawn.
        label_words_in_captions: Name the labels in the captions; else no word of a caption begins
            as a label does.
        cache_dir: Where the items are kept, and found when they are asked for again.

    Returns:
        uint8 pictures (count, 3, size, size), float32 texts, and 1 to 3 of the 10 labels an item.
    """

    def scenes() -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[str]]:
        image = np.empty((count, 3, size, size), dtype=np.uint8)
        labels = np.zeros((count, len(CLASSES)), dtype=np.uint8)
        captions = []
        for item in range(count):
            draw = np.random.default_rng([seed, item])
            scene = _Scene(draw, size)
            image[item] = scene.picture()
            labels[item, [CLASSES.index(name) for name in scene.labels]] = 1
            captions.append(scene.caption(label_words_in_captions))
        return image, labels, captions

    def build(unfinished: Path) -> dict[str, Any]:
        image, labels, captions = scenes()
        np.save(unfinished / "image.npy", image)
        np.save(unfinished / "labels.npy", labels)
        return {"captions": captions}

    if cache_dir is None:
        image, labels, captions = scenes()
    else:
        key = hashlib.blake2b(digest_size=8)
        key.update(repr((count, size, seed, label_words_in_captions, PIL.__version__)).encode())
        for source in (Path(__file__), CAPTIONS):
            key.update(source.read_bytes())
        folder = Path(cache_dir).expanduser() / f"generated_pictures-{key.hexdigest()}"
        captions = build_once(folder, build)["captions"]
        image, labels = (np.load(folder / f"{name}.npy") for name in ("image", "labels"))
    return CrossModalItems(
        image=image,
        text=bag_of_words(captions, vocabulary(label_words_in_captions)),
        labels=labels,
        classes=CLASSES,
        names=tuple(f"picture {item}" for item in range(count)),
        captions=tuple(captions),
    )


def encode_query(
    query: str, size: int, label_words_in_captions: bool = False
) -> tuple[Literal["image", "text"], NDArray[Any]]:
    """Turn a query into what `render` gives of an item; a picture is scaled to the size.

    Args:
        query: Words, or the path of a picture.
        size: As in `render`.
        label_words_in_captions: As in `render`.

    Returns:
        `text` and float32 (1, words), or `image` and uint8 (1, 3, size, size).

    Raises:
        ValueError: The captions have none of the words, or the picture cannot be read.
    """
    if is_picture(query):
        picture = read_picture(Path(query)).resize((size, size), Image.Resampling.BOX)
        return "image", np.asarray(picture).transpose(2, 0, 1)[None].copy()
    words = vocabulary(label_words_in_captions)
    text = bag_of_words([query], words)
    if not text.any():
        raise ValueError(
            f"query={query!r}: no file, and the generated captions have none of these words; they "
            f"have {', '.join(words)}"
        )
    if unknown := [word for word in dict.fromkeys(split_words(query)) if word not in words]:
        log.warning("query=%s: not read, as no caption has it: %s", query, ", ".join(unknown))
    return "text", text


def bag_of_words(captions: Sequence[str], words: Sequence[str]) -> NDArray[np.float32]:
    """Which words a caption has: 1 or 0, float32 (captions, words); other words are left out."""
    columns = {word: column for column, word in enumerate(words)}
    bags = np.zeros((len(captions), len(words)), dtype=np.float32)
    for row, caption in enumerate(captions):
        for word in split_words(caption):
            if word in columns:
                bags[row, columns[word]] = 1
    return bags


def split_words(caption: str) -> list[str]:
    """The words of a caption, in small letters."""
    return re.findall(r"[a-z]+", caption.lower())


@cache
def vocabulary(label_words_in_captions: bool = False) -> tuple[str, ...]:
    """Every word that a caption may have, sorted; it does not depend on what was drawn."""
    table = _captions()
    sentences = (*table["sentences"], *table["empty_sentences"])
    groups = [
        *(form for forms in _phrases(label_words_in_captions).values() for form in forms),
        *(colour["words"] for colour in (*table["colours"], *table["grounds"])),
        *(words for row in table["places"] for words in row),
        *(*table["unnamed"], *table["numbers"].values(), *table["sizes"].values()),
        *(table["surfaces"], table["covered"], ("a", "an", "and")),
        [sentence.format(figures="", ground="") for sentence in sentences],
    ]
    return tuple(sorted({word for texts in groups for t in texts for word in split_words(t)}))


# --- one scene ---------------------------------------------------------------------------------


class _Scene:
    """What is in one picture: drawn first, then described."""

    def __init__(self, draw: np.random.Generator, size: int) -> None:
        self.random, self.size, table = draw, size, _captions()
        self.pattern = str(draw.choice(PATTERNS)) if draw.random() < 0.4 else None
        kinds = int(draw.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
        if self.pattern is not None:
            kinds -= kinds > 1 or draw.random() < 0.25
        self.kinds = [str(name) for name in draw.choice(FIGURES, size=kinds, replace=False)]
        self.labels = [*self.kinds, *([self.pattern] if self.pattern else [])]
        self.ground = table["grounds"][draw.integers(len(table["grounds"]))]
        chosen = draw.choice(len(table["colours"]), size=kinds, replace=False)
        self.colours = [table["colours"][number] for number in chosen]
        # Four figures at most, so that each keeps a dozen pixels or so.
        self.numbers = [int(draw.choice([1, 2, 3], p=[0.6, 0.3, 0.1])) for _ in range(kinds)]
        while sum(self.numbers) > 4:
            self.numbers[int(np.argmax(self.numbers))] -= 1
        self.radii = [
            draw.uniform(*((0.17, 0.3) if sum(self.numbers) < 3 else (0.15, 0.21)))
            for _ in range(kinds)
        ]
        self.centres = self._place()

    def _place(self) -> list[list[tuple[float, float]]]:
        """Centres of all figures in the unit square, apart from each other where there is room."""
        taken: list[tuple[float, float, float]] = []
        centres: list[list[tuple[float, float]]] = []
        for number, radius in zip(self.numbers, self.radii, strict=True):
            centres.append([])
            for _ in range(number):
                best, best_room = (0.5, 0.5), -math.inf
                for _ in range(24):
                    x, y = self.random.uniform(radius, 1 - radius, 2)
                    room = min(
                        (math.hypot(x - a, y - b) - radius - r for a, b, r in taken), default=1.0
                    )
                    if room > best_room:
                        best, best_room = (float(x), float(y)), room
                    if room > 0:
                        break
                taken.append((*best, radius))
                centres[-1].append(best)
        return centres

    def picture(self) -> NDArray[np.uint8]:
        """uint8 (3, size, size)."""
        side = self.size * SUPERSAMPLING
        image = Image.fromarray(self._ground(side))
        for kind, colour, radius, centres in zip(
            self.kinds, self.colours, self.radii, self.centres, strict=True
        ):
            fill = self._shade(colour["rgb"], 18)
            for centre in centres:
                mask = Image.new("L", (side, side))
                pen = ImageDraw.Draw(mask)
                angle = self.random.uniform(-0.45, 0.45)
                for outline, shown in _outlines(kind):
                    turned = _turn(outline, angle) * radius + centre
                    pen.polygon([tuple(point) for point in turned * side], fill=255 * shown)
                image.paste(fill, mask=mask)
        small = np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float32)
        light = 1 + np.linspace(-0.08, 0.08, self.size)[:, None, None] * self.random.choice([-1, 1])
        noisy = small * light + self.random.normal(0, 5, small.shape)
        return noisy.clip(0, 255).astype(np.uint8).transpose(2, 0, 1)

    def _ground(self, side: int) -> NDArray[np.uint8]:
        base = self._shade(self.ground["rgb"], 8)
        ground = np.broadcast_to(np.array(base, dtype=np.uint8), (side, side, 3)).copy()
        if self.pattern is None:
            return ground
        step = 60 if sum(base) < 384 else -60
        other = tuple(int(np.clip(value + step, 0, 255)) for value in base)
        angle = self.random.uniform(0, math.pi) if self.pattern == "stripes" else 0.0
        period = side * self.random.uniform(0.19, 0.27)
        rows, columns = np.mgrid[:side, :side]
        along = columns * math.cos(angle) + rows * math.sin(angle) + self.random.uniform(0, period)
        across = rows * math.cos(angle) - columns * math.sin(angle) + self.random.uniform(0, period)
        if self.pattern == "stripes":
            marked = along % period < period / 2
        elif self.pattern == "dots":
            half = period / 2
            marked = np.hypot(along % period - half, across % period - half) < 0.33 * period
        else:
            marked = (along % period < period / 2) ^ (across % period < period / 2)
        ground[marked] = other
        return ground

    def _shade(self, colour: tuple[int, int, int], spread: int) -> tuple[int, ...]:
        jitter = self.random.integers(-spread, spread + 1, 3)
        return tuple(int(value) for value in np.clip(np.array(colour) + jitter, 0, 255))

    def caption(self, label_words: bool) -> str:
        """One English sentence; its words never depend on how the picture was drawn."""
        table, phrases = _captions(), _phrases(label_words)
        figures = []
        for kind, colour, number, radius, centres in zip(
            self.kinds, self.colours, self.numbers, self.radii, self.centres, strict=True
        ):
            unnamed = self.random.random() < UNNAMED
            one, several, *tail = self._pick(table["unnamed"] if unnamed else phrases[kind])
            options = (table["numbers"][number], table["sizes"][_size(radius)], colour["words"])
            parts = [self._pick(words) for words in options]
            parts += [one if number == 1 else several, *tail]
            if number == 1 and self.random.random() < 0.5:
                column, row = (min(int(value * 3), 2) for value in centres[0])
                parts.append(self._pick(table["places"][row][column]))
            figures.append(_with_article(" ".join(part for part in parts if part)))
        ground = f"a {self._pick(self.ground['words'])} {self._pick(table['surfaces'])}"
        if self.pattern is not None:
            marks, *_ = self._pick(phrases[self.pattern])
            ground = f"{ground} {self._pick(table['covered'])} {marks}"
        ground = _with_article(ground)
        self.random.shuffle(figures)
        shown = " and ".join([", ".join(figures[:-1]), figures[-1]] if figures[1:] else figures)
        sentence = self._pick(table["sentences" if figures else "empty_sentences"])
        text = sentence.format(figures=shown, ground=ground)
        return text[0].upper() + text[1:]

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.random.integers(len(options)))]


def _size(radius: float) -> Literal["small", "medium", "large"]:
    return "small" if radius < 0.18 else "large" if radius > 0.25 else "medium"


def _with_article(phrase: str) -> str:
    return re.sub(r"^a(?= [aeiou])", "an", phrase)


@cache
def _outlines(kind: str) -> tuple[tuple[NDArray[np.float64], bool], ...]:
    """Polygons of a figure within the unit circle; one that is not shown is a hole."""
    turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    disc = np.stack([np.sin(turn), -np.cos(turn)], 1)
    if kind == "circle":
        return ((disc, True),)
    if kind == "ring":
        return ((disc, True), (0.55 * disc, False))
    if kind == "triangle":
        return ((disc[::16] * 1.1, True),)
    if kind == "square":
        return ((disc[6::12] * 1.1, True),)
    if kind == "star":
        points = np.linspace(0, 2 * math.pi, 10, endpoint=False)
        reach = np.where(np.arange(10) % 2, 0.45, 1.1)[:, None]
        return ((np.stack([np.sin(points), -np.cos(points)], 1) * reach, True),)
    if kind == "cross":
        a, b = 0.3, 1.0
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        corners += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        return ((np.array(corners), True),)
    assert kind == "heart", kind
    x = 16 * np.sin(turn) ** 3
    y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return ((np.stack([x, -y - 2.5], 1) / 15, True),)


def _turn(outline: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return outline @ np.array([[cosine, sine], [-sine, cosine]])
