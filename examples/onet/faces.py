"""Synthetic faces: crops with the box and the five landmarks of each face, drawn with nothing but torch."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 48
FACES, TEXTURES, BLANKS = 0.5, 0.2, 0.18  # shares of all crops; the rest are scrambled faces

Point = tuple[Tensor, Tensor]  # across and along a frame


class Crops(NamedTuple):
    images: Tensor  # (n, 3, 48, 48), the 256 grey levels of a camera, in [-1, 1]
    is_face: Tensor  # (n, 1): 1 for a face, 0 for a texture, a head without features, or scrambled features
    places: Tensor  # (n, 14), in units of the side: box x1 y1 x2 y2; eyes, nose, corners of the mouth as x y


class Dice:
    """Random numbers, one per crop, shaped to broadcast over its channels and pixels."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float, channels: int = 1, side: int = 1) -> Tensor:
        values = torch.rand(self.n, channels, side, side, generator=self.generator)
        return low + (high - low) * values

    def chance(self, share: float) -> Tensor:
        return (self.between(0, 1) < share).float()

    def noise(self) -> Tensor:
        return torch.randn(self.n, 3, SIDE, SIDE, generator=self.generator)


class Frame:
    """Coordinates that lie in the crop as a head does: (0, 0) its middle, 1 its edge to the right or below.

    Middle, half width and half height are given in units of the crop's side.
    """

    def __init__(self, x: Tensor, y: Tensor, width: Tensor, height: Tensor, angle: Tensor) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self.cos, self.sin = angle.cos(), angle.sin()
        middles = (torch.arange(SIDE) + 0.5) / SIDE
        right, down = middles.view(1, 1, 1, SIDE) - x, middles.view(1, 1, SIDE, 1) - y
        self.u = (right * self.cos + down * self.sin) / width
        self.v = (down * self.cos - right * self.sin) / height

    def ellipse(
        self, u: Tensor | float, v: Tensor | float, width: Tensor | float, height: Tensor | float
    ) -> Tensor:
        """How much of each pixel an ellipse covers, (n, 1, 48, 48), by its middle and half its size."""
        across, along = (self.u - u) / width, (self.v - v) / height
        pixels = torch.minimum(width * self.width, height * self.height) * SIDE
        return ((1 - (across**2 + along**2).sqrt()) * pixels + 0.5).clamp(0, 1)

    def stroke(self, start: Point, end: Point, thickness: Tensor, sag: Tensor) -> Tensor:
        """How much of each pixel a brush stroke covers; midway it is thickest and hangs ``sag`` lower."""
        (u, v), (to_u, to_v) = start, end
        across, along = (to_u - u) / 2, (to_v - v) / 2
        half = (across**2 + along**2).sqrt() + 1e-6
        right, down = self.u - u - across, self.v - v - along
        t = (right * across + down * along) / half**2  # -1 at the start, 1 at the end
        bow = (1 - t**2).clamp(min=0)
        beside = (down * across - right * along) / half - sag * bow
        pixels = torch.minimum(self.width, self.height) * SIDE
        return ((thickness * bow.sqrt() - beside.abs()) * pixels + 0.5).clamp(0, 1) * (bow > 0)

    def place(self, u: Tensor, v: Tensor) -> Tensor:
        """Where a point of this frame lies in the crop: (n, 2), x y."""
        right, down = u * self.width, v * self.height
        x = self.x + right * self.cos - down * self.sin
        y = self.y + right * self.sin + down * self.cos
        return torch.cat([x, y], 1).flatten(1)

    def box(self) -> Tensor:
        """The smallest upright box around the head: (n, 4), x1 y1 x2 y2."""
        right = ((self.width * self.cos) ** 2 + (self.height * self.sin) ** 2).sqrt()
        down = ((self.width * self.sin) ** 2 + (self.height * self.cos) ** 2).sqrt()
        return torch.cat([self.x - right, self.y - down, self.x + right, self.y + down], 1).flatten(1)


def draw(n: int, seed: int) -> Crops:
    """Crops of faces and of what is none, about half each; the same seed gives the same ones."""
    dice = Dice(n, seed)
    kind = dice.between(0, 1)
    is_face = (kind < FACES).float()
    has_features = (kind < 1 - TEXTURES - BLANKS).float()
    has_head = (kind < 1 - TEXTURES).float()

    height = dice.between(0.32, 0.48)
    head = Frame(
        x=0.5 + dice.between(-0.1, 0.1),
        y=0.5 + dice.between(-0.1, 0.1),
        width=height * dice.between(0.66, 0.88),
        height=height,
        angle=dice.between(-0.6, 0.6),
    )
    points = landmarks(dice, scrambled=has_features - is_face)

    image = background(dice)
    image = hair(image, dice, head, has_head)
    skin = skin_tone(dice)
    image = paint(image, shade(skin, dice, head), head.ellipse(0, 0, 1, 1) * has_head)
    image = features(image, dice, head, points, skin, has_features)
    image = fringe(image, dice, head, has_head)
    image = camera(occlusion(image, dice), dice)

    places = torch.cat([head.box(), *(head.place(u, v) for u, v in points)], 1)
    is_face = is_face.flatten(1)
    return Crops(image, is_face, places * is_face)


def paint(image: Tensor, colour: Tensor, cover: Tensor) -> Tensor:
    return image + (colour - image) * cover


def landmarks(dice: Dice, scrambled: Tensor) -> list[Point]:
    """Left eye, right eye, nose, left and right corner of the mouth: of a head that looks somewhat aside."""
    turn, nod = dice.between(-0.16, 0.16), dice.between(-0.08, 0.08)
    eyes, eye_height = dice.between(0.33, 0.43), dice.between(-0.26, -0.12)
    mouth, mouth_height = dice.between(0.24, 0.40), dice.between(0.44, 0.58)
    proper = [
        (turn - eyes, nod + eye_height),
        (turn + eyes, nod + eye_height),
        (1.7 * turn, nod + dice.between(0.12, 0.26)),
        (turn - mouth, nod + mouth_height),
        (turn + mouth, nod + mouth_height),
    ]
    elsewhere = [(dice.between(-0.65, 0.65), dice.between(-0.65, 0.65)) for _ in proper]
    return [
        (u + (s - u) * scrambled, v + (t - v) * scrambled)
        for (u, v), (s, t) in zip(proper, elsewhere, strict=True)
    ]


def background(dice: Dice) -> Tensor:
    """Soft light, grain, stripes and a few things that stand about, in any colours."""
    middles = (torch.arange(SIDE) + 0.5) / SIDE
    x, y = middles.view(1, 1, 1, SIDE), middles.view(1, 1, SIDE, 1)
    light = functional.interpolate(dice.between(0, 1, 3, 3), SIDE, mode="bilinear")
    grain = functional.interpolate(dice.between(-0.5, 0.5, 3, 13), SIDE, mode="bilinear")
    slope = dice.between(0, math.pi)
    stripes = ((x * slope.cos() + y * slope.sin()) * dice.between(10, 70) + dice.between(0, 6)).sin()
    image = light + grain * dice.between(0, 0.8) + stripes * dice.between(0.05, 0.3) * dice.chance(0.4)
    for _ in range(3):
        thing = Frame(
            x=dice.between(0, 1),
            y=dice.between(0, 1),
            width=dice.between(0.05, 0.35),
            height=dice.between(0.05, 0.35),
            angle=dice.between(0, math.pi),
        )
        round_, square = thing.ellipse(0, 0, 1, 1), (thing.u.abs() < 1).float() * (thing.v.abs() < 1)
        is_round = dice.chance(0.5)
        cover = round_ * is_round + square * (1 - is_round)
        image = paint(image, dice.between(0, 1, 3), cover * dice.chance(0.5))
    return image.clamp(0, 1)


def skin_tone(dice: Dice) -> Tensor:
    """From deep brown to very light, with some way to red or yellow: (n, 3, 1, 1)."""
    deep, light = torch.tensor([0.22, 0.13, 0.09]), torch.tensor([0.98, 0.85, 0.76])
    tone = deep.view(1, 3, 1, 1) + (light - deep).view(1, 3, 1, 1) * dice.between(0, 1)
    return tone + dice.between(-0.05, 0.05, 3)


def shade(skin: Tensor, dice: Dice, head: Frame) -> Tensor:
    """The skin under light that comes from a side: (n, 3, 48, 48)."""
    return skin * (1 + dice.between(-0.3, 0.3) * head.u + dice.between(-0.3, 0.2) * head.v)


def hair(image: Tensor, dice: Dice, head: Frame, has_head: Tensor) -> Tensor:
    """What is seen of the hair around the head."""
    colour = hair_colour(dice)
    around = head.ellipse(0, dice.between(-0.25, 0.1), dice.between(1.05, 1.3), dice.between(0.95, 1.3))
    return paint(image, colour, around * has_head * dice.chance(0.7))


def hair_colour(dice: Dice) -> Tensor:
    brown = torch.tensor([1.0, 0.75, 0.5]).view(1, 3, 1, 1)
    return dice.between(0.02, 0.7) * (brown + (1 - brown) * dice.between(0, 1))


def fringe(image: Tensor, dice: Dice, head: Frame, has_head: Tensor) -> Tensor:
    """Hair or a hat over the forehead."""
    hairline = dice.between(-0.75, -0.4) + 0.2 * head.u * dice.between(-1, 1)
    forehead = head.ellipse(0, 0, 1.02, 1.02) * (head.v < hairline)
    return paint(image, hair_colour(dice), forehead * has_head * dice.chance(0.6))


def features(
    image: Tensor, dice: Dice, head: Frame, points: list[Point], skin: Tensor, present: Tensor
) -> Tensor:
    """Brows, eyes, nose and mouth at their points, or dark glasses before the eyes."""
    *eyes, (nose_u, nose_v), left_corner, right_corner = points
    width, openness = dice.between(0.15, 0.24), dice.between(0.04, 0.13)
    brow, iris, glass = hair_colour(dice), dice.between(0, 0.35, 3), dice.between(0, 0.4, 3)
    brow_lift, brows = dice.between(0.15, 0.24), present * dice.chance(0.85)
    look = dice.between(-0.05, 0.05)
    dark_glasses = present * dice.chance(0.08)
    for u, v in eyes:
        image = paint(image, skin * 0.7, head.ellipse(u, v, width * 1.2, openness * 1.7) * present * 0.7)
        image = paint(image, dice.between(0.75, 1), head.ellipse(u, v, width, openness) * present)
        image = paint(image, iris, head.ellipse(u + look, v, openness * 1.1, openness) * present)
        image = paint(image, brow, head.ellipse(u, v - brow_lift, width * 1.2, 0.045) * brows)
        image = paint(image, glass, head.ellipse(u, v, 0.3, 0.2) * dark_glasses)

    image = paint(image, skin * 1.2, head.ellipse(nose_u, nose_v - 0.2, 0.06, 0.25) * present * 0.6)
    image = paint(image, skin * 0.55, head.ellipse(nose_u, nose_v, dice.between(0.11, 0.2), 0.06) * present)

    lip_red = torch.tensor([0.75, 0.25, 0.25]).view(1, 3, 1, 1)
    lips = skin * 0.5 + lip_red * dice.between(0.15, 0.6)
    thickness, sag = dice.between(0.06, 0.12), dice.between(-0.12, 0.16)
    return paint(image, lips, head.stroke(left_corner, right_corner, thickness, sag) * present)


def occlusion(image: Tensor, dice: Dice) -> Tensor:
    """A hand, a bar, a leaf: something of one colour that hides a part of every third crop or so."""
    thing = Frame(
        x=dice.between(0, 1),
        y=dice.between(0, 1),
        width=dice.between(0.04, 0.2),
        height=dice.between(0.1, 0.4),
        angle=dice.between(0, math.pi),
    )
    return paint(image, dice.between(0, 1, 3), thing.ellipse(0, 0, 1, 1) * dice.chance(0.35))


def camera(image: Tensor, dice: Dice) -> Tensor:
    """Blur, exposure, contrast, some without colour, noise; and 256 grey levels, in [-1, 1]."""
    blurred = functional.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    image = paint(image, blurred, dice.between(0, 1) * dice.chance(0.5))
    image = paint(image, image.mean(1, keepdim=True), dice.chance(0.15))
    image = (image - 0.5) * dice.between(0.6, 1.3) + dice.between(0.35, 0.65)
    image = image + dice.noise() * dice.between(0, 0.05)
    return (image.clamp(0, 1) * 255).round() / 127.5 - 1
