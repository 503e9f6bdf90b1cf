"""Drawings of the 43 German signs, in vectors: what the synthetic photographs are taken of.

The polygons have integer corners and the drawing uses no library but Pillow, so a sign has the same
pixels on every machine with one version of Pillow.
"""

import functools
import itertools
import math

import numpy as np
from PIL import Image, ImageDraw

from nbsupport.gtsrb import CLASS_NAMES

__all__ = ["EXTENT", "draw_sign"]

# fmt: off
# ---- drawing: the unit is the sign's radius, the origin its centre, y points down
WHITE, BLACK, GREY = (242, 242, 238), (24, 24, 26), (120, 122, 124)
RED, BLUE, YELLOW, GREEN = (188, 24, 34), (20, 78, 158), (246, 190, 30), (30, 140, 70)
EXTENT = 1.08
"""Half width of a drawing in radii of the sign: leaves a transparent margin."""
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
        scale = self.size / (2 * EXTENT)
        return [(round((x + EXTENT) * scale), round((y + EXTENT) * scale)) for x, y in points]

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
