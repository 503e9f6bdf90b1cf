"""What is attacked (`Scenario`) and how much is computed (`Profile`), each named by one word.

The word is the whole description: it names folders, papermill parameters and table rows, and it
parses back to the same object. ``standard-s3-p15-r0`` is the standard attack with a 3x3 sticker,
15 % of the target class poisoned, repetition 0.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from fractions import Fraction

import numpy as np

__all__ = [
    "ATTACKS",
    "DEVICES",
    "EXTENDED",
    "GRAMMAR",
    "PAPER",
    "PROFILES",
    "Profile",
    "Scenario",
    "expand",
    "paper_scenarios",
]

ATTACKS = ("clean", "standard", "label_consistent", "amplitude", "blended", "sinusoidal")
"""Attack families: the paper's four, then two that no sticker detector is tuned to."""

DEVICES = ("auto", "cpu", "cuda")
"""Where a run may compute; "auto" takes a GPU where torch finds one."""

N_CLASSES = 43
IMAGE_SIDE = 32

RELEASED_POSITIONS = {
    "standard": ((16, 19), (16, 17)),
    "label_consistent": ((16, 24), (10, 22)),
}
"""Rows and columns of the top left pixel that the released code draws from: four points each."""

GRAMMAR = """\
clean[-resnet]-r<repetition>
standard-s<side>-p<percent>[-<option>...]-r<repetition>
label_consistent-s<side>-p<percent>[-<option>...]-r<repetition>
amplitude-a<amplitude>-p<percent>[-<option>...]-r<repetition>
blended-a<opacity in percent>-p<percent>[-<option>...]-r<repetition>
sinusoidal-a<amplitude>-p<percent>[-<option>...]-r<repetition>
options, in this order:
  from<class>[+<class>...]  source classes (default from2: 50 km/h)
  to<class>                 target class (default to5: 80 km/h)
  win<rows>x<columns>       centred window of the sticker (default win10x15)
  released                  the four positions of the authors' code instead of the window
  rgb<rrggbb>               colour of the sticker (default rgbf5ff00)
  corners4                  amplitude pattern in all four corners
  pgd<steps>x<step>         projected gradient descent (default pgd5x0.015)
  linf<radius> | l2<radius> radius of its ball, images in [0, 1] (default linf, steps * step)
  start                     random start inside the ball
  cover<percent>            correctly labelled source images with the trigger, per cent of the class
  resnet                    a small residual network instead of the Inception
examples: standard-s3-p15-r0  label_consistent-s3-p33-r4  amplitude-a64-p33-r0"""


@dataclass(frozen=True)
class Scenario:
    """One poisoning attack, complete: the same scenario gives the same poison set everywhere.

    Parameters
    ----------
    attack : str
        One of `ATTACKS`.
    side : int
        Side of the quadratic sticker in pixels (the paper's s).
    amplitude : int
        Amplitude of a reduced-amplitude or sinusoidal trigger (0-255), or the opacity of a
        blended one in percent; 0 where the attack has none.
    percent : str
        Poisoned share of the *target class* in percent, as written in the id (the paper's p).
    source_classes : tuple of int
        Classes that the standard attack relabels.
    target_class : int
        Class that the trigger shall call up.
    window : tuple of int
        Rows and columns of the centred window that holds the sticker (Section 6.1).
    positions : {"window", "released"}
        Uniform in the window as described, or one of the four points of the released code.
    colour : str
        Colour of the sticker, as six hexadecimal digits.
    corners : {1, 4}
        Amplitude pattern in the lower right corner, or in all four.
    pgd_steps, pgd_step
        Iterations and step size of projected gradient descent on images in [0, 1].
    pgd_norm : {"linf", "l2"}
        Norm of the ball that holds the perturbation.
    pgd_radius : float
        Radius of that ball; 0 stands for ``pgd_steps * pgd_step``, which nothing without a random
        start exceeds: a step is as long as ``pgd_step`` in that norm, in l2 over the whole image.
    pgd_random_start : bool
        Start at a random point of the ball.
    cover : str
        Cover samples (trigger, correct label) in percent of the target class; adaptive attack.
    model : {"inception", "resnet"}
        Architecture of the attacked network and of its surrogate.
    repetition : int
        Seeds every draw: chosen images, positions, weights.

    Notes
    -----
    Defaults are those of the paper and, where it is silent, of the released code.
    """

    attack: str = "standard"
    side: int = 3
    amplitude: int = 0
    percent: str = "15"
    source_classes: tuple[int, ...] = (2,)
    target_class: int = 5
    window: tuple[int, int] = (10, 15)
    positions: str = "window"
    colour: str = "f5ff00"
    corners: int = 1
    pgd_steps: int = 5
    pgd_step: float = 0.015
    pgd_norm: str = "linf"
    pgd_radius: float = 0.0
    pgd_random_start: bool = False
    cover: str = "0"
    model: str = "inception"
    repetition: int = 0

    def __post_init__(self):
        """Refuse values that no attack could use, before anything is computed from them."""
        object.__setattr__(self, "percent", canonical_percent(self.percent))
        object.__setattr__(self, "cover", canonical_percent(self.cover, lowest=0))
        # One attack has one name: images are drawn from all sources alike.
        object.__setattr__(self, "source_classes", tuple(sorted(self.source_classes)))
        rows, columns = self.window
        reach = self.pgd_steps * Fraction(_decimal(self.pgd_step))
        radius = Fraction(_decimal(self.pgd_radius))
        largest = IMAGE_SIDE
        if self.positions == "released" and self.attack in RELEASED_POSITIONS:
            largest -= max(map(max, RELEASED_POSITIONS[self.attack]))
        allowed = {
            "attack": (self.attack in ATTACKS, f"one of {ATTACKS}"),
            "side": (
                1 <= self.side <= largest,
                f"1 to {largest} pixels with positions {self.positions!r}",
            ),
            "amplitude": (0 <= self.amplitude <= 255, "0 to 255"),
            "source_classes": (
                len(set(self.source_classes)) == len(self.source_classes) > 0
                and all(0 <= c < N_CLASSES for c in self.source_classes)
                and self.target_class not in self.source_classes,
                f"distinct classes 0 to {N_CLASSES - 1} without the target class",
            ),
            "target_class": (0 <= self.target_class < N_CLASSES, f"0 to {N_CLASSES - 1}"),
            "positions": (self.positions in ("window", "released"), "'window' or 'released'"),
            "window": (
                self.side <= min(rows, columns) and max(rows, columns) <= IMAGE_SIDE,
                f"at least the sticker's side ({self.side}) and at most {IMAGE_SIDE} pixels",
            ),
            "colour": (bool(re.fullmatch("[0-9a-f]{6}", self.colour)), "six hexadecimal digits"),
            "corners": (self.corners in (1, 4), "1 or 4"),
            "pgd_steps": (1 <= self.pgd_steps <= 1000, "1 to 1000"),
            "pgd_step": (0 < self.pgd_step <= 1, "more than 0, at most 1"),
            "pgd_norm": (self.pgd_norm in ("linf", "l2"), "'linf' or 'l2'"),
            "pgd_radius": (
                radius >= 0 and (radius < reach or self.pgd_random_start),
                f"less than {float(reach):g}, which {self.pgd_steps} steps of {self.pgd_step} "
                "reach at most; for a larger ball name steps and their size, pgd<n>x<size>",
            ),
            "model": (self.model in ("inception", "resnet"), "'inception' or 'resnet'"),
            "repetition": (self.repetition >= 0, "0 or more"),
        }
        if self.positions == "released":
            plain = self.window == type(self).window
            allowed["window"] = (plain, "none, for the released positions are four points")
        if self.attack == "blended":
            allowed["amplitude"] = (1 <= self.amplitude <= 100, "an opacity of 1 to 100 percent")
        elif self.attack in ("amplitude", "sinusoidal"):
            allowed["amplitude"] = (1 <= self.amplitude <= 255, "1 to 255")
        for name, (fine, expected) in allowed.items():
            if not fine:
                raise ValueError(
                    f"scenario: {name} is {getattr(self, name)!r}; expected {expected}"
                )
        used = {n for token in _TOKENS if self.attack in token.attacks for n in token.names}
        for field in fields(self)[1:]:
            if field.name not in used and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"scenario: {self.attack} attacks have no {field.name}; see\n{GRAMMAR}"
                )

    @classmethod
    def parse(cls, text: str) -> "Scenario":
        """Read a scenario id; the inverse of ``str``.

        Raises
        ------
        ValueError
            If the word does not follow `GRAMMAR` (which the error shows).
        """
        wrong = ValueError(f"no scenario is called {text!r}; the grammar is\n{GRAMMAR}")
        if not isinstance(text, str):
            raise wrong
        attack, *parts = text.split("-")
        if attack not in ATTACKS or not parts:
            raise wrong
        values = {"attack": attack}
        patterns = [token for token in _TOKENS if attack in token.attacks]
        for part in parts:
            # Options keep one order, so that one attack has one name and one folder.
            while patterns:
                token = patterns.pop(0)
                match = re.fullmatch(token.pattern, part)
                if match:
                    values |= token.read(match)
                    break
                if token.required:
                    raise wrong
            else:
                raise wrong
        if any(token.required for token in patterns):
            raise wrong
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}; the grammar is\n{GRAMMAR}") from None

    def __str__(self):
        return "-".join([self.attack, *(token.write(self) for token in self._tokens())])

    def _tokens(self) -> "list[_Token]":
        """List what the id has to say behind the attack: what is required or not as usual."""
        usual = {f.name: f.default for f in fields(self)}
        return [
            token
            for token in _TOKENS
            if self.attack in token.attacks
            and (token.required or any(getattr(self, n) != usual[n] for n in token.names))
        ]

    @property
    def options(self) -> tuple[str, ...]:
        """Words of the id that not every attack of its kind has: "cover05", "resnet"."""
        return tuple(token.write(self) for token in self._tokens() if not token.required)

    @property
    def share(self) -> Fraction:
        """Poisoned share of the target class, exactly (the paper's p / 100)."""
        return Fraction(self.percent) / 100

    @property
    def label_consistent(self) -> bool:
        """Whether poisoned images keep their label (the trigger hides in the target class)."""
        return self.attack in ("label_consistent", "amplitude", "sinusoidal")

    @property
    def needs_surrogate(self) -> bool:
        """Whether the attacker needs a clean network of his own (Section 6.1.2)."""
        return self.attack in ("label_consistent", "amplitude")

    @property
    def surrogate(self) -> "Scenario":
        """The clean scenario that trains the attacker's network: one for all repetitions."""
        return Scenario(attack="clean", model=self.model)

    def n_poisoned(self, class_size: int) -> int:
        """Count the images to poison in a class of ``class_size`` clean images.

        Standard attacks add n images so that they make up p of the *new* class,
        n = round(p N / (1 - p)); label-consistent ones change n = round(p N) in place. Halves go
        to the even neighbour, as in the released code: 33 % of 1,650 is 544.
        """
        if self.attack == "clean":
            return 0
        if self.label_consistent:
            return round(self.share * class_size)
        return round(self.share * class_size / (1 - self.share))

    def rng(self, purpose: str) -> np.random.Generator:
        """Return the generator of all draws for one purpose ("train", "validation", "test", ...).

        Its stream depends on the repetition, the attack family and the purpose alone, so that no
        draw disturbs another and neighbouring rates poison nested sets.
        """
        key = f"{self.attack}/{purpose}".encode()
        return np.random.default_rng([self.repetition, zlib.crc32(key)])

    def seed(self, purpose: str) -> int:
        """Return a 32-bit seed for torch, drawn from `rng`."""
        return int(self.rng(purpose).integers(2**31))


def canonical_percent(text: str | float, lowest: float | None = None) -> str:
    """Write a percentage the one way ids use: "05", "33" or "0.5"."""
    try:
        value = Fraction(str(text))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"scenario: {text!r} is not a percentage such as '15' or '0.5'") from None
    if not (0 < value < 100) and value != lowest:
        raise ValueError(f"scenario: {text} % is not between 0 and 100 (both excluded)")
    if value == 0:
        return "0"
    digits = f"{float(value):.4f}".rstrip("0").rstrip(".")
    if Fraction(digits) != value:
        raise ValueError(f"scenario: {text} % has more than four decimals")
    return digits if "." in digits else digits.zfill(2)


@dataclass(frozen=True)
class _Token:
    """One part of an id: how it looks, which fields it fills, which attacks use it."""

    names: tuple[str, ...]
    pattern: str
    read: Callable[[re.Match], dict]
    write: Callable[[Scenario], str]
    attacks: tuple[str, ...]
    required: bool = False


def _decimal(number: float) -> str:
    """Write the fewest digits that read back as the same number, never with an exponent."""
    return np.format_float_positional(float(number), trim="-")


def _read_ball(match: re.Match) -> dict:
    return {"pgd_norm": match[1], "pgd_radius": float(match[2])}


_POISONED = ATTACKS[1:]
_STICKER = ("standard", "label_consistent")
_NUMBER = r"\d+(?:\.\d+)?"
_TOKENS = (
    _Token(("side",), r"s(\d+)", lambda m: {"side": int(m[1])}, lambda s: f"s{s.side}",
           _STICKER, True),
    _Token(("amplitude",), r"a(\d+)", lambda m: {"amplitude": int(m[1])},
           lambda s: f"a{s.amplitude}", ("amplitude", "blended", "sinusoidal"), True),
    _Token(("percent",), f"p({_NUMBER})", lambda m: {"percent": m[1]}, lambda s: f"p{s.percent}",
           _POISONED, True),
    _Token(("source_classes",), r"from(\d+(?:\+\d+)*)",
           lambda m: {"source_classes": tuple(int(c) for c in m[1].split("+"))},
           lambda s: "from" + "+".join(map(str, s.source_classes)), _POISONED),
    _Token(("target_class",), r"to(\d+)", lambda m: {"target_class": int(m[1])},
           lambda s: f"to{s.target_class}", _POISONED),
    _Token(("window",), r"win(\d+)x(\d+)", lambda m: {"window": (int(m[1]), int(m[2]))},
           lambda s: f"win{s.window[0]}x{s.window[1]}", _STICKER),
    _Token(("positions",), "released", lambda m: {"positions": "released"},
           lambda s: "released", _STICKER),
    _Token(("colour",), "rgb([0-9a-f]{6})", lambda m: {"colour": m[1]},
           lambda s: f"rgb{s.colour}", _STICKER),
    _Token(("corners",), "corners([14])", lambda m: {"corners": int(m[1])},
           lambda s: f"corners{s.corners}", ("amplitude",)),
    _Token(("pgd_steps", "pgd_step"), rf"pgd(\d+)x({_NUMBER})",
           lambda m: {"pgd_steps": int(m[1]), "pgd_step": float(m[2])},
           lambda s: f"pgd{s.pgd_steps}x{_decimal(s.pgd_step)}", ("label_consistent", "amplitude")),
    _Token(("pgd_norm", "pgd_radius"), f"(linf|l2)({_NUMBER})", _read_ball,
           lambda s: f"{s.pgd_norm}{_decimal(s.pgd_radius)}", ("label_consistent", "amplitude")),
    _Token(("pgd_random_start",), "start", lambda m: {"pgd_random_start": True},
           lambda s: "start", ("label_consistent", "amplitude")),
    _Token(("cover",), f"cover({_NUMBER})", lambda m: {"cover": m[1]},
           lambda s: f"cover{s.cover}", ("standard", "blended")),
    _Token(("model",), "resnet", lambda m: {"model": "resnet"}, lambda s: "resnet", ATTACKS),
    _Token(("repetition",), r"r(\d+)", lambda m: {"repetition": int(m[1])},
           lambda s: f"r{s.repetition}", ATTACKS, True),
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """How much is computed: which images, and how long the network trains.

    Parameters
    ----------
    name : str
        Name of the profile and of its folder of runs.
    data : {"synthetic", "gtsrb"}
        Source of the images.
    scale : float
        Size of the synthetic set, as a share of GTSRB's.
    optimizer : {"adam", "adamw"}
        Optimiser.
    learning_rate, weight_decay : float
        Its step size (the peak of a one-cycle schedule) and weight decay.
    schedule : {"constant", "one_cycle"}
        Course of the learning rate.
    batch_size, epochs, patience : int
        Images per step; upper bound of epochs; epochs without lower validation loss until it
        stops early.
    dropout : float
        Dropout of the dense layers.
    precision : {"fp32", "auto"}
        "auto" computes in bfloat16 where the device has units for it.
    """

    name: str
    data: str
    scale: float = 1.0
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    schedule: str = "one_cycle"
    batch_size: int = 64
    epochs: int = 6
    patience: int = 20
    dropout: float = 0.25
    precision: str = "auto"

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Read a profile: a name of `PROFILES`, optionally with other ``-epochs<n>``.

        ``fast-epochs12`` is the profile ``fast`` trained for twelve epochs; it has a folder of
        its own, so that no run ever mixes with those of the unchanged profile.

        Raises
        ------
        ValueError
            If the name is unknown.
        """
        match = re.fullmatch(r"([a-z]+)(?:-epochs([1-9]\d*))?", text) if text else None
        if not match or match[1] not in PROFILES:
            raise ValueError(
                f"no profile is called {text!r}; choose one of {', '.join(PROFILES)}, "
                "optionally with a number of epochs as in 'fast-epochs12'"
            )
        profile = PROFILES[match[1]]
        if match[2] and int(match[2]) != profile.epochs:
            profile = replace(profile, name=text, epochs=int(match[2]))
        return profile

    def __str__(self):
        return self.name


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("tiny", "synthetic", scale=0.0075, epochs=1),
        # Five epochs on a quarter of the images leave nothing for dropout to regularise.
        Profile("demo", "synthetic", scale=0.25, epochs=5, dropout=0.0),
        # Dropout and large batches keep 34 poisoned images from being learned in six epochs.
        Profile("fast", "gtsrb", batch_size=32, dropout=0.0),
        Profile(
            "paper",
            "gtsrb",
            optimizer="adam",
            learning_rate=1e-3,
            weight_decay=0.0,
            schedule="constant",
            batch_size=32,
            epochs=100,
            dropout=0.5,
            precision="fp32",
        ),
    )
}
"""tiny: tests only. demo: minutes, no download. fast: GTSRB, short recipe. paper: Section 5.6."""


def paper_scenarios() -> dict[str, tuple[Scenario, ...]]:
    """List the experiments behind each table of the paper, 31 different ones in all.

    Returns
    -------
    dict
        Scenarios by table; Table 3 reuses an attack of Table 1, Table 5 the repetitions 0 of
        Table 2.
    """
    rates = ("33", "15", "10", "05", "02")
    return {
        "table1": tuple(Scenario("standard", percent=p) for p in rates),
        "table2": tuple(Scenario("label_consistent", percent=p) for p in rates),
        "table3": (Scenario("standard", percent="33"),),
        "table4": tuple(
            Scenario("amplitude", amplitude=a, percent="33") for a in (128, 64, 32)
        ),
        "table5": tuple(
            Scenario("label_consistent", percent=p, repetition=r)
            for p in ("33", "15")
            for r in range(10)
        ),
    }  # fmt: skip


def expand(text: str) -> tuple[Scenario, ...]:
    """Read a list of scenarios: ids separated by spaces or commas, and names of whole sets.

    "paper" stands for `PAPER`, "extended" for `EXTENDED`.

    Raises
    ------
    ValueError
        If an id is wrong, or the list is empty.
    """
    words = text.replace(",", " ").split()
    if not words:
        raise ValueError(f"no scenario is named; write ids, or 'paper' for all of\n{GRAMMAR}")
    sets = {"paper": PAPER, "extended": EXTENDED}
    ids = [name for word in words for name in sets.get(word, (word,))]
    return tuple(dict.fromkeys(Scenario.parse(name) for name in ids))


PAPER = tuple(dict.fromkeys(str(s) for table in paper_scenarios().values() for s in table))
"""The ids of all experiments of the paper, without the surrogate that they share."""

EXTENDED = (
    *(f"standard-s{s}-p{p}-r0" for s in (1, 2) for p in ("33", "15", "10", "05", "02", "01")),
    *(f"standard-s3-p{p}-r{r}" for p in ("33", "15", "10", "05", "02") for r in range(1, 5)),
    "amplitude-a255-p33-r0",
)
"""What stands beside the paper, so that all tables of the thesis can be filled: its smaller
stickers, its sticker of full amplitude, and four more repetitions of Table 1, for its means are
those of five runs."""
