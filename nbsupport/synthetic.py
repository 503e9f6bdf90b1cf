"""Synthetic signs: a procedural stand-in for GTSRB that needs no download.

Forty-three German signs are drawn once each (`draw_sign`) and then seen through a simulated car
camera (`generate`): tracks of 30 frames of one physical sign, small, blurred, dim, backlit and
off-centre as in GTSRB, with GTSRB's class frequencies.

What is guaranteed: the same bits for the same seed, scale and `Look` with one version of Pillow.
Between machines, the draws use only `Generator.random` and `Generator.integers`, the images only
elementwise float32 additions, multiplications and divisions (exactly rounded by IEEE 754), and
the drawings only polygons with integer corners; there is no matrix product, no transcendental
function and no thread on the way. Another release of Pillow may rasterise a polygon differently.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

__all__ = [
    "CLASS_NAMES",
    "COUNTS",
    "FRAMES",
    "LOOK",
    "SPLITS",
    "Look",
    "Signs",
    "draw_sign",
    "generate",
    "tracks_per_class",
]

SPLITS = ("train", "validation", "test")
FRAMES = 30
"""Frames of one physical sign, as in GTSRB."""

CLASS_NAMES = (
    "speed limit 20 km/h",
    "speed limit 30 km/h",
    "speed limit 50 km/h",
    "speed limit 60 km/h",
    "speed limit 70 km/h",
    "speed limit 80 km/h",
    "end of speed limit 80 km/h",
    "speed limit 100 km/h",
    "speed limit 120 km/h",
    "no overtaking",
    "no overtaking for lorries",
    "right of way at the next crossing",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no lorries",
    "no entry",
    "danger",
    "curve to the left",
    "curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "roadworks",
    "traffic signals",
    "pedestrians",
    "children",
    "bicycles",
    "snow or ice",
    "wild animals",
    "end of all limits",
    "turn right",
    "turn left",
    "ahead only",
    "ahead or right",
    "ahead or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking for lorries",
)
"""English names of the 43 classes, in GTSRB's order."""

# fmt: off
COUNTS = {
    "train": (
        180, 1980, 2010, 1260, 1770, 1650, 360, 1290, 1260, 1320, 1800, 1170, 1890, 1920, 690,
        540, 360, 990, 1080, 180, 300, 270, 330, 450, 240, 1350, 540, 210, 480, 240, 390, 690,
        210, 599, 360, 1080, 330, 180, 1860, 270, 300, 210, 210,
    ),
    "validation": (
        60, 240, 240, 150, 210, 210, 60, 150, 150, 150, 210, 150, 210, 240, 90, 90, 60, 120, 120,
        30, 60, 60, 60, 60, 30, 150, 60, 30, 60, 30, 60, 90, 30, 90, 60, 120, 60, 30, 210, 30, 60,
        30, 30,
    ),
    "test": (
        60, 720, 750, 450, 660, 630, 150, 450, 450, 480, 660, 420, 690, 720, 270, 210, 150, 360,
        390, 60, 90, 90, 120, 150, 90, 480, 180, 60, 150, 90, 150, 270, 60, 210, 120, 390, 120,
        60, 690, 90, 90, 60, 90,
    ),
}
"""Images per class in the paper's split of GTSRB (34,799 / 4,440 / 12,630), counted on disk."""
# fmt: on


@dataclass(frozen=True)
class Look:
    """How hard the camera makes it: every knob of the simulated photographs.

    Lengths are in half image sides (1 = 16 pixels) unless they say pixels; light is relative to
    a white that just saturates. A pair is the range of a draw, (low, high).
    """

    radius_far: tuple[float, float] = (0.56, 0.70)
    """Radius of the sign in the first frame of a track."""
    radius_near: tuple[float, float] = (0.68, 0.86)
    """Radius of the sign in the last frame."""
    offset: float = 0.08
    """Largest displacement of the whole track from the centre."""
    jitter: float = 0.05
    """Largest further displacement of a single frame."""
    tilt: float = 0.06
    """Largest rotation in the image plane (tangent of half the angle: 0.06 is 7 degrees)."""
    squeeze: float = 0.18
    """Largest foreshortening of the width (a sign seen from the side)."""
    perspective: float = 0.08
    """Largest projective distortion across the sign."""
    sign_light: tuple[float, float] = (0.22, 1.50)
    """Light on the sign; low values are more frequent than high ones."""
    background_light: tuple[float, float] = (0.08, 1.30)
    """Light on what is behind the sign."""
    flicker: float = 0.12
    """Relative change of light from frame to frame."""
    haze: float = 0.08
    """Largest stray light added to everything: lowers the contrast."""
    fading: float = 0.35
    """Largest loss of colour of a weathered sign."""
    dirt: float = 0.35
    """Largest darkening of the sign's face by dirt."""
    shadow: float = 0.45
    """Largest darkening of a part of the sign by a cast shadow (every third track has one)."""
    blur_far: tuple[float, float] = (0.45, 1.00)
    """Standard deviation of the blur in the first frame, in pixels."""
    blur_near: tuple[float, float] = (0.25, 0.60)
    """Standard deviation of the blur in the last frame, in pixels."""
    motion: float = 0.70
    """Largest additional blur along one axis, in pixels (every third track)."""
    noise: tuple[float, float] = (0.005, 0.025)
    """Standard deviation of the sensor noise, relative to white."""


LOOK = Look()
"""The look behind ``load("synthetic")``."""


@dataclass(frozen=True)
class Signs:
    """One split of synthetic signs.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, 3, 32, 32)
    labels : ndarray of int64, shape (n,)
        Class, ascending.
    tracks : ndarray of int64, shape (n,)
        Number of the physical sign, counted from 0 within its class and split.
    """

    images: np.ndarray
    labels: np.ndarray
    tracks: np.ndarray


# fmt: off
# ---- drawing: the unit is the sign's radius, the origin its centre, y points down
WHITE, BLACK, GREY = (242, 242, 238), (24, 24, 26), (120, 122, 124)
RED, BLUE, YELLOW, GREEN = (188, 24, 34), (20, 78, 158), (246, 190, 30), (30, 140, 70)
_EXTENT = 1.08  # half width of a drawing in radii: leaves a transparent margin
_OVERSAMPLING = 4


def _arc(cx, cy, rx, ry, start, stop, n=48):
    """Points on an ellipse, angles in degrees, clockwise on the screen from the right."""
    angles = [math.radians(start + (stop - start) * k / n) for k in range(n + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _turned(points, degrees, cx=0.0, cy=0.0):
    """Points turned clockwise about the origin, then moved to (cx, cy)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(cx + c * x - s * y, cy + s * x + c * y) for x, y in points]


class _Canvas:
    """Polygons in sign coordinates on a large picture; ink outside the face is not cut off."""

    def __init__(self, size: int):
        self.size = size * _OVERSAMPLING
        self.colour = Image.new("RGB", (self.size, self.size), GREY)
        self.cover = Image.new("L", (self.size, self.size), 0)

    def _pixels(self, points):
        scale = self.size / (2 * _EXTENT)
        return [(round((x + _EXTENT) * scale), round((y + _EXTENT) * scale)) for x, y in points]

    def plate(self, points, colour):
        """Add a piece of the sign's outline."""
        ImageDraw.Draw(self.cover).polygon(self._pixels(points), fill=255)
        self.fill(points, colour)

    def fill(self, points, colour=BLACK):
        """Paint a polygon."""
        ImageDraw.Draw(self.colour).polygon(self._pixels(points), fill=colour)

    def disc(self, x, y, r, colour=BLACK):
        """Paint a disc."""
        self.fill(_arc(x, y, r, r, 0, 360), colour)

    def stroke(self, points, width, colour=BLACK):
        """Paint a line with round joints and ends."""
        half = width / 2
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            nx, ny = half * (y0 - y1) / length, half * (x1 - x0) / length
            self.fill(
                [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)],
                colour,
            )
        for x, y in points:
            self.fill(_arc(x, y, half, half, 0, 360, 16), colour)

    def finish(self) -> Image.Image:
        """Reduce to the wanted size, RGBA; whole-number means, so the same on every machine."""
        n = self.size // _OVERSAMPLING
        both = np.dstack([np.asarray(self.colour), np.asarray(self.cover)]).astype(np.uint32)
        blocks = both.reshape(n, _OVERSAMPLING, n, _OVERSAMPLING, 4).sum(axis=(1, 3))
        area = _OVERSAMPLING**2
        return Image.fromarray(((blocks + area // 2) // area).astype(np.uint8), "RGBA")


# Strokes of the glyphs in a box of width 1 and height 2 about the origin.
_GLYPHS = {
    "0": [_arc(0, -0.5, 0.5, 0.5, 180, 360) + _arc(0, 0.5, 0.5, 0.5, 0, 180) + [(-0.5, -0.5)]],
    "1": [[(-0.32, -0.6), (0.1, -1), (0.1, 1)]],
    "2": [_arc(0, -0.5, 0.48, 0.5, 190, 370) + [(0.4, -0.2), (-0.5, 1), (0.52, 1)]],
    "3": [_arc(0, -0.52, 0.44, 0.48, 200, 440), _arc(0, 0.46, 0.5, 0.54, 280, 520)],
    "5": [[(0.42, -1), (-0.36, -1), (-0.44, -0.12)] + _arc(0, 0.42, 0.5, 0.58, 225, 515)],
    "6": [_arc(0, 0.46, 0.5, 0.54, 0, 360), _arc(0.45, 0.4, 0.95, 1.4, 180, 262)],
    "7": [[(-0.5, -1), (0.5, -1), (-0.15, 1)]],
    "8": [_arc(0, -0.52, 0.42, 0.48, 0, 360), _arc(0, 0.47, 0.5, 0.53, 0, 360)],
    "S": [_arc(0, -0.5, 0.48, 0.5, 330, 90), _arc(0, 0.5, 0.48, 0.5, 270, 510)],
    "T": [[(-0.55, -1), (0.55, -1)], [(0, -1), (0, 1)]],
    "P": [[(-0.42, 1), (-0.42, -1)] + _arc(0.05, -0.48, 0.45, 0.52, 270, 450) + [(-0.42, 0.04)]],
}
_GLYPHS["O"] = _GLYPHS["0"]


def _write(canvas, text, height, width, pitch, weight, colour=BLACK):
    """Write `text` centred on the sign; `height` and `width` of a glyph, `pitch` between them."""
    for k, letter in enumerate(text):
        x = (k - (len(text) - 1) / 2) * pitch
        for line in _GLYPHS[letter]:
            canvas.stroke([(x + px * width, py * height / 2) for px, py in line], weight, colour)


def _round(canvas, rim, face, inner=0.77):
    canvas.plate(_arc(0, 0, 1, 1, 0, 360, 96), WHITE if rim != WHITE else GREY)
    canvas.disc(0, 0, 0.965, rim)
    canvas.disc(0, 0, inner, face)


def _limit(canvas, text):
    _round(canvas, RED, WHITE)
    if len(text) == 2:
        _write(canvas, text, 0.76, 0.40, 0.58, 0.135)
    else:
        _write(canvas, text, 0.72, 0.30, 0.44, 0.115)


def _car(canvas, x, y, s, colour):
    """A car from behind: body, roof, wheels."""
    canvas.fill([(x + s * a, y + s * b) for a, b in
                 [(-1, 0), (-0.62, -0.12), (-0.4, -0.62), (0.4, -0.62), (0.62, -0.12), (1, 0),
                  (1, 0.45), (-1, 0.45)]], colour)
    for side in (-0.68, 0.68):
        canvas.fill([(x + s * (side + a), y + s * b) for a, b in
                     [(-0.2, 0.4), (0.2, 0.4), (0.2, 0.78), (-0.2, 0.78)]], colour)
    canvas.fill([(x + s * a, y + s * b) for a, b in
                 [(-0.34, -0.14), (-0.24, -0.46), (0.24, -0.46), (0.34, -0.14)]], WHITE)


def _lorry_behind(canvas, x, y, s, colour):
    canvas.fill([(x + s * a, y + s * b) for a, b in
                 [(-0.85, -1.25), (0.85, -1.25), (0.85, 0.45), (-0.85, 0.45)]], colour)
    for side in (-0.55, 0.55):
        canvas.fill([(x + s * (side + a), y + s * b) for a, b in
                     [(-0.2, 0.4), (0.2, 0.4), (0.2, 0.8), (-0.2, 0.8)]], colour)


def _overtaking(canvas, left, right, lorry):
    if lorry:
        _lorry_behind(canvas, -0.30, 0.10, 0.31, left)
    else:
        _car(canvas, -0.33, 0.04, 0.31, left)
    _car(canvas, 0.34, 0.04 if not lorry else 0.12, 0.27 if lorry else 0.31, right)


def _end_lines(canvas):
    for shift in (-0.20, -0.10, 0.0, 0.10, 0.20):
        reach = math.sqrt(0.90**2 - shift**2)
        canvas.stroke(_turned([(-reach, shift), (reach, shift)], -52), 0.055, BLACK)


def _triangle(canvas, rim=RED, down=False):
    flip = -1 if down else 1
    for side, colour in ((1.0, WHITE), (0.96, rim), (0.66, WHITE)):
        # Rounded corners: a disc in each corner of a smaller triangle, and their hull.
        small = 0.14 if colour != WHITE or side == 1.0 else 0.06
        reach = side * 1.26 - 2 * small
        corners = [(0, -reach), (reach * 0.866, reach * 0.5), (-reach * 0.866, reach * 0.5)]
        corners = [(x, flip * (y + 0.26)) for x, y in corners]
        hull = []
        for k, (x, y) in enumerate(corners):
            middle = (-90 + 120 * k) * flip
            hull += _arc(x, y, small, small, middle - 60, middle + 60, 12)[:: flip]
        (canvas.plate if side == 1.0 else canvas.fill)(hull, colour)


def _arrow(canvas, points, width, head, colour=BLACK):
    """A line that ends in a triangular head of the given half width."""
    (x0, y0), (x1, y1) = points[-2:]
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    canvas.stroke(points, width, colour)
    canvas.fill([(x1 - dy * head, y1 + dx * head), (x1 + dx * head * 1.3, y1 + dy * head * 1.3),
                 (x1 + dy * head, y1 - dx * head)], colour)


def _person(canvas, x, y, s, colour=BLACK):
    """A walking figure, `s` tall from hip to head."""
    put = lambda *points: [(x + s * a, y + s * b) for a, b in points]  # noqa: E731
    canvas.disc(x + 0.03 * s, y - 1.02 * s, 0.19 * s, colour)
    canvas.fill(put((-0.2, -0.8), (0.22, -0.8), (0.2, 0), (-0.18, 0)), colour)
    canvas.stroke(put((0.02, -0.05), (0.3, 0.45), (0.34, 0.95)), 0.19 * s, colour)
    canvas.stroke(put((-0.04, -0.05), (-0.2, 0.45), (-0.5, 0.9)), 0.19 * s, colour)
    canvas.stroke(put((0.12, -0.7), (0.42, -0.38), (0.6, -0.5)), 0.13 * s, colour)
    canvas.stroke(put((-0.1, -0.7), (-0.4, -0.3), (-0.55, -0.15)), 0.13 * s, colour)


def _in_triangle(canvas, c):
    """Paint the pictogram of warning sign `c`; the free face is centred on (0, 0.26)."""
    _triangle(canvas)
    if c == 11:
        _arrow(canvas, [(0, 0.56), (0, -0.02)], 0.17, 0.20)
        canvas.stroke([(-0.28, 0.28), (0.28, 0.28)], 0.09)
    elif c == 18:
        canvas.fill([(-0.11, -0.24), (0.11, -0.24), (0.06, 0.30), (-0.06, 0.30)])
        canvas.disc(0, 0.47, 0.10)
    elif c in (19, 20):
        side = -1 if c == 19 else 1
        bend = [(-0.14, 0.56), (-0.14, 0.30), (-0.02, 0.12), (0.12, 0.08)]
        _arrow(canvas, [(side * x, y) for x, y in bend], 0.15, 0.19)
    elif c == 21:
        canvas.stroke([(0.12, 0.58), (0.12, 0.40), (-0.12, 0.24), (-0.12, 0.14)], 0.13)
        _arrow(canvas, [(-0.12, 0.14), (0.1, 0.02), (0.1, -0.08)], 0.12, 0.16)
    elif c == 22:
        for x in (-0.22, 0.22):
            canvas.fill(_arc(x, 0.46, 0.21, 0.24, 180, 360))
        canvas.fill([(-0.52, 0.44), (0.52, 0.44), (0.52, 0.54), (-0.52, 0.54)])
    elif c == 23:
        canvas.fill(_turned([(-0.26, 0), (-0.17, -0.05), (-0.1, -0.2), (0.14, -0.2), (0.2, -0.05),
                             (0.3, 0), (0.3, 0.12), (-0.26, 0.12)], -14, 0.02, 0.14))
        for x in (-0.16, 0.14):
            canvas.stroke([(x, 0.28), (x + 0.12, 0.36), (x - 0.06, 0.46), (x + 0.06, 0.58)], 0.07)
    elif c == 24:
        canvas.stroke([(-0.18, 0.58), (-0.18, -0.02)], 0.10)
        canvas.stroke([(0.26, 0.58), (0.22, 0.34), (0.04, 0.16), (0.04, -0.06)], 0.10)
    elif c == 25:
        canvas.disc(-0.02, -0.12, 0.09)
        canvas.stroke([(-0.04, 0.02), (-0.12, 0.26)], 0.17)
        canvas.stroke([(-0.1, 0.28), (0.06, 0.42), (0.02, 0.56)], 0.10)
        canvas.stroke([(-0.14, 0.28), (-0.26, 0.56)], 0.10)
        canvas.stroke([(0, 0.04), (0.14, 0.2), (0.3, 0.36)], 0.08)
        canvas.fill([(0.14, 0.58), (0.3, 0.34), (0.5, 0.58)])
    elif c == 26:
        canvas.fill([(-0.15, -0.32), (0.15, -0.32), (0.15, 0.60), (-0.15, 0.60)])
        for y, colour in ((-0.18, (230, 40, 40)), (0.13, YELLOW), (0.44, GREEN)):
            canvas.disc(0, y, 0.125, colour)
    elif c == 27:
        _person(canvas, 0, 0.24, 0.40)
        for x in (-0.48, -0.24, 0.24, 0.48):
            canvas.stroke([(x * 0.8, 0.60), (x, 0.64)], 0.07)
    elif c == 28:
        _person(canvas, 0.17, 0.22, 0.40)
        _person(canvas, -0.24, 0.34, 0.29)
    elif c == 29:
        for x in (-0.24, 0.24):
            canvas.disc(x, 0.40, 0.19)
            canvas.disc(x, 0.40, 0.115, WHITE)
        canvas.stroke([(-0.24, 0.40), (-0.08, 0.14), (0.12, 0.14), (0, 0.4), (-0.08, 0.1)], 0.06)
        canvas.stroke([(0.24, 0.40), (0.1, 0.02), (0.2, 0.0)], 0.06)
        canvas.stroke([(-0.16, 0.09), (0.0, 0.09)], 0.06)
    elif c == 30:
        for angle in (90, 150, 210):
            canvas.stroke(_turned([(-0.32, 0), (0.32, 0)], angle, 0, 0.24), 0.075)
        for angle in range(30, 390, 60):
            canvas.stroke(_turned([(0.26, -0.11), (0.16, 0), (0.26, 0.11)], angle, 0, 0.24), 0.05)
    else:
        canvas.fill([(-0.34, 0.16), (0.1, 0.12), (0.18, -0.1), (0.34, -0.06), (0.24, 0.02),
                     (0.2, 0.28), (0.06, 0.36), (-0.24, 0.36), (-0.34, 0.44)])
        for leg in ([(-0.22, 0.32), (-0.32, 0.58)], [(-0.14, 0.32), (-0.16, 0.58)],
                    [(0.08, 0.32), (0.28, 0.42), (0.22, 0.54)], [(0.04, 0.32), (0.14, 0.58)]):
            canvas.stroke(leg, 0.06)
        canvas.stroke([(0.2, -0.08), (0.1, -0.22), (0.12, -0.3)], 0.04)
        canvas.stroke([(0.22, -0.08), (0.26, -0.24)], 0.04)


def _in_blue(canvas, c):
    """Paint the arrows of mandatory sign `c`."""
    _round(canvas, BLUE, BLUE, inner=0.9)
    mirror = -1 if c in (34, 37, 39) else 1
    put = lambda points: [(mirror * x, y) for x, y in points]  # noqa: E731
    if c in (33, 34):
        bend = [(-0.26, 0.62), (-0.26, 0.0), (-0.14, -0.16), (0.18, -0.18)]
        _arrow(canvas, put(bend), 0.22, 0.32, WHITE)
    elif c == 35:
        _arrow(canvas, [(0, 0.68), (0, -0.24)], 0.24, 0.36, WHITE)
    elif c in (36, 37):
        _arrow(canvas, put([(-0.18, 0.66), (-0.18, -0.36)]), 0.19, 0.27, WHITE)
        _arrow(canvas, put([(-0.18, 0.3), (0.0, 0.14), (0.3, 0.14)]), 0.19, 0.27, WHITE)
    elif c in (38, 39):
        _arrow(canvas, put([(-0.46, -0.46), (0.18, 0.18)]), 0.24, 0.36, WHITE)
    else:
        for start in (200, 320, 80):
            # The head continues the arc: screen angles grow clockwise, the traffic does not.
            line = _arc(0, 0, 0.52, 0.52, start, start - 66, 20)
            _arrow(canvas, line, 0.16, 0.22, WHITE)


# fmt: on
@functools.lru_cache(maxsize=128)
def draw_sign(class_index: int, size: int = 128) -> Image.Image:
    """Draw a clean sign, seen from the front in full light.

    Parameters
    ----------
    class_index : int
        Class in GTSRB's order, 0 to 42; see `CLASS_NAMES`.
    size : int, default 128
        Side of the picture in pixels; the sign has a transparent margin of 4 %.

    Returns
    -------
    PIL.Image.Image
        RGBA, `size` x `size`. Cached: copy it before you change it.

    Raises
    ------
    ValueError
        If there is no such class, or `size` is not positive.
    """
    c = class_index
    if not 0 <= c < len(CLASS_NAMES):
        raise ValueError(f"class_index is {c!r}; the classes are 0 to {len(CLASS_NAMES) - 1}")
    if size < 1:
        raise ValueError(f"size is {size!r}; give the side of the picture in pixels, e.g. 128")
    canvas = _Canvas(size)
    limits = {0: "20", 1: "30", 2: "50", 3: "60", 4: "70", 5: "80", 7: "100", 8: "120"}
    if c in limits:
        _limit(canvas, limits[c])
    elif c == 6:
        _round(canvas, WHITE, WHITE, 0.9)
        _write(canvas, "80", 0.76, 0.40, 0.58, 0.135, GREY)
        _end_lines(canvas)
    elif c in (9, 10):
        _round(canvas, RED, WHITE)
        _overtaking(canvas, RED, BLACK, lorry=c == 10)
    elif c == 12:
        for reach, colour in ((1.0, WHITE), (0.62, YELLOW)):
            corners = [(0, -reach), (reach, 0), (0, reach), (-reach, 0)]
            (canvas.plate if reach == 1.0 else canvas.fill)(corners, colour)
        canvas.stroke([(0, -0.93), (0.93, 0), (0, 0.93), (-0.93, 0), (0, -0.93)], 0.03, GREY)
    elif c == 13:
        _triangle(canvas, down=True)
    elif c == 14:
        for reach, colour in ((1.0, WHITE), (0.95, RED)):
            corners = [_turned([(reach, 0)], 22.5 + 45 * k)[0] for k in range(8)]
            (canvas.plate if reach == 1.0 else canvas.fill)(corners, colour)
        _write(canvas, "STOP", 0.58, 0.28, 0.42, 0.11, WHITE)
    elif c == 15:
        _round(canvas, RED, WHITE)
    elif c == 16:
        _round(canvas, RED, WHITE)
        canvas.fill([(-0.20, -0.28), (0.54, -0.28), (0.54, 0.20), (-0.20, 0.20)])
        canvas.fill([(-0.54, 0.20), (-0.54, -0.02), (-0.44, -0.18), (-0.25, -0.18), (-0.25, 0.20)])
        canvas.fill([(-0.47, 0.0), (-0.41, -0.11), (-0.32, -0.11), (-0.32, 0.0)], WHITE)
        for x in (-0.38, 0.12, 0.38):
            canvas.disc(x, 0.24, 0.12)
    elif c == 17:
        _round(canvas, RED, RED, 0.9)
        canvas.fill([(-0.72, -0.17), (0.72, -0.17), (0.72, 0.17), (-0.72, 0.17)], WHITE)
    elif c == 32:
        _round(canvas, WHITE, WHITE, 0.9)
        _end_lines(canvas)
    elif c in (41, 42):
        _round(canvas, WHITE, WHITE, 0.9)
        _overtaking(canvas, GREY, GREY, lorry=c == 42)
        _end_lines(canvas)
    elif c >= 33:
        _in_blue(canvas, c)
    else:
        _in_triangle(canvas, c)
    return canvas.finish()


# ---- the camera: every operation from here to the pixels is exactly rounded and in fixed order
_TEXTURE = 128  # side of the drawing that is sampled
_SUB = 3  # samples per pixel side


def tracks_per_class(split: str, scale: float = 1.0) -> tuple[int, ...]:
    """Number of tracks of each class: GTSRB's, times `scale`, at least one.

    Parameters
    ----------
    split : str
        One of `SPLITS`.
    scale : float, default 1.0
        Share of GTSRB's size, in (0, 10].

    Returns
    -------
    tuple of int, length 43
    """
    if split not in COUNTS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    if not 0 < scale <= 10:
        raise ValueError(f"scale is {scale!r}; give a share of GTSRB's size in (0, 10], e.g. 0.25")
    return tuple(max(1, math.floor(scale * n / FRAMES + 0.5)) for n in COUNTS[split])


def generate(split: str, scale: float = 1.0, seed: int = 0, look: Look = LOOK) -> Signs:
    """Photograph synthetic signs for one split.

    Every track has its own random stream, made from (seed, split, class, number): splits share
    no physical sign, and a smaller `scale` gives the first tracks of a larger one.

    Parameters
    ----------
    split : str
        One of `SPLITS`.
    scale : float, default 1.0
        Share of GTSRB's size; class counts are whole tracks of 30 frames, at least one.
    seed : int, default 0
        Not negative.
    look : Look, default `LOOK`
        How hard the camera makes it.

    Returns
    -------
    Signs
        Sorted by class, track, frame.

    Raises
    ------
    ValueError
        If `split`, `scale` or `seed` is outside its set.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed!r}; give a whole number of at least 0")
    counts = tracks_per_class(split, scale)
    images = np.empty((FRAMES * sum(counts), 3, 32, 32), np.uint8)
    row = 0
    for c, n_tracks in enumerate(counts):
        drawing = np.asarray(draw_sign(c, _TEXTURE)).astype(np.float32) / np.float32(255)
        for track in range(n_tracks):
            stream = np.random.SeedSequence((seed, SPLITS.index(split), c, track))
            rng = np.random.Generator(np.random.PCG64(stream))
            images[row : row + FRAMES] = _photograph(_weathered(drawing, rng, look), rng, look)
            row += FRAMES
    labels = np.repeat(np.arange(len(counts)), [FRAMES * n for n in counts])
    tracks = np.concatenate([np.repeat(np.arange(n), FRAMES) for n in counts])
    return Signs(images, labels.astype(np.int64), tracks.astype(np.int64))


def _draw(rng, low, high, shape=()):
    """Uniform float32; `Generator.uniform` may fuse its multiply and add on some machines."""
    unit = rng.random(shape).astype(np.float32)
    return np.float32(low) + np.float32(high - low) * unit


def _enlarge(grid, side):
    """Bilinear enlargement of (g, g, channels) to (side, side, channels)."""
    g = grid.shape[0]
    at = np.arange(side, dtype=np.float32) * np.float32((g - 1) / (side - 1))
    left = np.minimum(at.astype(np.int64), g - 2)
    part = (at - left.astype(np.float32))[:, None]
    rows = grid[left] + part[..., None] * (grid[left + 1] - grid[left])
    return rows[:, left] + part * (rows[:, left + 1] - rows[:, left])


def _weathered(drawing, rng, look):
    """One physical sign: faded, dirty, perhaps in a shadow; premultiplied RGBA."""
    colour, cover = drawing[..., :3], drawing[..., 3:]
    fading = _draw(rng, 0, look.fading)
    fading = fading * fading / np.float32(max(look.fading, 1e-6))
    grey = (colour[..., :1] + colour[..., 1:2] + colour[..., 2:]) / np.float32(3)
    pale = np.float32(0.6) * grey + np.float32(0.25)
    colour = colour + fading * (pale - colour)
    dirt = _draw(rng, 0, look.dirt)
    stain = _enlarge(_draw(rng, 0, 1, (7, 7, 1)), _TEXTURE)
    colour = colour * (1 - dirt * stain * stain)
    slope, where, depth, lit = _draw(rng, -1, 1, 4)
    if lit > np.float32(1 / 3):
        line = np.arange(_TEXTURE, dtype=np.float32) / np.float32(_TEXTURE / 2) - 1
        dark = (line[:, None] + slope * line[None, :]) > np.float32(0.8) * where
        depth = np.float32(look.shadow / 2) * (1 + depth)
        colour = colour * (1 - depth * dark.astype(np.float32)[..., None])
    return np.concatenate([colour * cover, cover], axis=2)


def _background(rng):
    """What is behind the sign, (48, 48, 3): mottled, with a horizon, perhaps a bright sky."""
    fine, coarse = _draw(rng, 0, 1, (24, 24, 1)), _draw(rng, 0, 1, (6, 6, 1))
    tint = np.array([(0.36, 0.40, 0.26), (0.46, 0.38, 0.28), (0.46, 0.48, 0.50)], np.float32)
    ground = tint[rng.integers(3)] + _enlarge(_draw(rng, -0.1, 0.1, (4, 4, 3)), 48)
    ground = ground * (np.float32(0.25) + np.float32(1.5) * _enlarge(coarse, 48))
    ground = ground * (np.float32(0.4) + np.float32(1.2) * _enlarge(fine, 48))
    sky = np.array((0.88, 0.94, 1.0), np.float32) * _draw(rng, 0.7, 1.6)
    height = np.arange(48, dtype=np.float32)[:, None, None] / np.float32(24) - 1
    edge = _draw(rng, -2.6, 1.2) + _enlarge(_draw(rng, -0.5, 0.5, (9, 9, 1)), 48)
    return np.where(height < edge, sky, ground)


def _path(rng, start, stop, flutter):
    """A quantity over a track, shape (30,): from start to stop, with a little flutter."""
    t = np.arange(FRAMES, dtype=np.float32) / np.float32(FRAMES - 1)
    return start + (stop - start) * t + _draw(rng, -flutter, flutter, FRAMES)


def _soften(images, weight, axis):
    """One pass of [w, 1 - 2 w, w] along an axis, `weight` per image (variance 2 w pixels^2)."""
    n = images.shape[axis]
    index = np.arange(n)
    before = np.take(images, np.maximum(index - 1, 0), axis)
    after = np.take(images, np.minimum(index + 1, n - 1), axis)
    return images + weight[:, None, None, None] * (before + after - 2 * images)


def _photograph(sign, rng, look):
    """Frames of one sign as a car drives up to it, uint8, shape (30, 3, 32, 32)."""
    one = np.float32(1)
    radius = _path(rng, _draw(rng, *look.radius_far), _draw(rng, *look.radius_near), 0.02)
    off_x, off_y = (
        _path(rng, a, a / 2, look.jitter) for a in _draw(rng, -look.offset, look.offset, 2)
    )
    tilt, lean, skew = (
        _path(rng, _draw(rng, -m, m), _draw(rng, -m, m), 0.15 * m)
        for m in (look.tilt, look.perspective, look.perspective)
    )
    narrow = one - _path(rng, 0, _draw(rng, 0, look.squeeze), 0.0)
    # Rotation without sine and cosine, which differ between machines in the last bit.
    cosine, sine = (one - tilt * tilt) / (one + tilt * tilt), 2 * tilt / (one + tilt * tilt)

    side = 32 * _SUB
    grid = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side / 2) - one
    per_frame = (slice(None), None, None)
    x = (grid[None, None, :] - off_x[per_frame]) / radius[per_frame]
    y = (grid[None, :, None] - off_y[per_frame]) / radius[per_frame]
    depth = one / (one + lean[per_frame] * x + skew[per_frame] * y)
    u = (cosine[per_frame] * x + sine[per_frame] * y) * depth / narrow[per_frame]
    v = (cosine[per_frame] * y - sine[per_frame] * x) * depth
    to_texel = np.float32(_TEXTURE / 2 / _EXTENT)
    columns = np.clip(u * to_texel + _TEXTURE // 2, 0, _TEXTURE - 1).astype(np.int32)
    rows = np.clip(v * to_texel + _TEXTURE // 2, 0, _TEXTURE - 1).astype(np.int32)
    samples = np.take(sign.reshape(-1, 4), rows * _TEXTURE + columns, axis=0)
    pixels = sum(
        samples[:, a::_SUB, b::_SUB] for a in range(_SUB) for b in range(_SUB)
    ) / np.float32(_SUB**2)

    zoom = _path(rng, 1.0, _draw(rng, 0.55, 0.85), 0.0)
    drift_x, drift_y = (_path(rng, 0, a, 0.01) for a in _draw(rng, -0.4, 0.4, 2))
    centre = (np.arange(32, dtype=np.float32) + np.float32(0.5)) / 16 - one
    scenes = np.stack([_background(rng), _background(rng)])
    at_x = np.clip((centre * zoom[:, None] + drift_x[:, None]) * 24 + 24, 0, 47).astype(np.int32)
    at_y = np.clip((centre * zoom[:, None] + drift_y[:, None]) * 24 + 24, 0, 47).astype(np.int32)
    first, last = scenes[:, at_y[:, :, None], at_x[:, None, :]]
    behind = first + _path(rng, 0, 1, 0.0)[:, None, None, None] * (last - first)
    if rng.random() < 0.5:  # the post
        post = np.abs(centre[None, None, :] - off_x[per_frame]) < np.float32(0.08)
        post = post & (centre[None, :, None] > off_y[per_frame])
        behind = np.where(post[..., None], np.float32(0.35), behind)

    # Light: squares of uniform draws, because most GTSRB images are dim.
    sign_light, back_light = (
        np.float32(low) + np.float32(high - low) * _path(rng, q[0] * q[0], q[1] * q[1], 0.0)
        for (low, high), q in zip(
            (look.sign_light, look.background_light), _draw(rng, 0, 1, (2, 2)), strict=True
        )
    )
    sign_light, back_light = sign_light[:, None, None, None], back_light[:, None, None, None]
    flicker = one + _path(rng, 0, _draw(rng, -0.3, 0.3), look.flicker)
    warmth = one + np.array((1, 0, -1), np.float32) * _draw(rng, -0.15, 0.15)
    glow = _draw(rng, -0.35, 0.35, 2)
    shade = one + glow[0] * centre[None, :, None, None] + glow[1] * centre[None, None, :, None]
    cover = pixels[..., 3:]
    image = pixels[..., :3] * sign_light * shade + (one - cover) * behind * back_light
    image = image * flicker[:, None, None, None] * warmth
    image = image + _draw(rng, 0, look.haze) * (np.float32(0.4) + sign_light)

    sigma = _path(rng, _draw(rng, *look.blur_far), _draw(rng, *look.blur_near), 0.08)
    motion = _draw(rng, 0, look.motion) if rng.random() < 1 / 3 else np.float32(0)
    along = int(rng.integers(1, 3))
    noise = _draw(rng, *look.noise)
    # A sum of four bytes is close enough to a Gaussian, and exact.
    bytes_ = rng.integers(0, 256, (4, *image.shape), dtype=np.uint8).astype(np.float32)
    grain = (bytes_[0] + bytes_[1] + bytes_[2] + bytes_[3] - np.float32(510)) / np.float32(147.8)
    image = image + noise * grain
    for axis in (1, 2):
        variance = sigma * sigma + (motion * motion if axis == along else np.float32(0))
        for _ in range(3):
            image = _soften(image, np.minimum(variance / 6, np.float32(0.3)), axis)
    again = np.roll(grain, 7, axis=2)
    image = image + np.float32(0.4) * noise * again
    levels = np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 3, 1, 2))
