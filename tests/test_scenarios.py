import json
import random
import re
from dataclasses import fields
from itertools import product

import numpy as np
import pytest

from nbsupport.scenarios import (
    ATTACKS,
    EXTENDED,
    GRAMMAR,
    PAPER,
    PROFILES,
    Profile,
    Scenario,
    canonical_percent,
    expand,
    paper_scenarios,
)

PERCENT = {"percent": ["15", "33", "02", "0.5", "99.9999"]}
SOURCES = {"source_classes": [(2,), (1, 2, 42), (42, 0)], "target_class": [5, 7, 3]}
STICKER = {
    "side": [1, 3, 8],
    "window": [(10, 15), (32, 32), (15, 10)],
    "positions": ["window", "released"],
    "colour": ["f5ff00", "000000", "0a1b2c"],
}
PGD = {
    "pgd_steps": [5, 1, 1000],
    "pgd_step": [0.015, 1e-5, 1 / 255, 0.1234567, 1.0],
    "pgd_norm": ["linf", "l2"],
    "pgd_radius": [0.0, 0.1, 1e-7, 300.0, 12345678.5],
    "pgd_random_start": [False, True],
}
COVER = {"cover": ["0", "05", "2.5"]}
COMMON = {"model": ["inception", "resnet"], "repetition": [0, 9, 123]}
CHOICES = {
    "clean": COMMON,
    "standard": STICKER | PERCENT | SOURCES | COVER | COMMON,
    "label_consistent": STICKER | PERCENT | SOURCES | PGD | COMMON,
    "amplitude": {"amplitude": [1, 64, 255], "corners": [1, 4]} | PERCENT | SOURCES | PGD | COMMON,
    "blended": {"amplitude": [1, 20, 100]} | PERCENT | SOURCES | COVER | COMMON,
    "sinusoidal": {"amplitude": [1, 20, 255]} | PERCENT | SOURCES | COMMON,
}
IDS = {
    "clean-r0": {"attack": "clean"},
    "clean-resnet-r3": {"attack": "clean", "model": "resnet", "repetition": 3},
    "standard-s3-p15-r0": {},
    "standard-s3-p05-r0": {"percent": 5},
    "standard-s3-p0.5-r0": {"percent": "0.5"},
    "label_consistent-s3-p33-r4": {
        "attack": "label_consistent",
        "percent": "33",
        "repetition": 4,
    },
    "amplitude-a64-p33-corners4-r0": {
        "attack": "amplitude",
        "amplitude": 64,
        "percent": "33",
        "corners": 4,
    },
    "blended-a20-p10-cover05-r1": {
        "attack": "blended",
        "amplitude": 20,
        "percent": "10",
        "cover": "5",
        "repetition": 1,
    },
    "sinusoidal-a20-p33-r0": {"attack": "sinusoidal", "amplitude": 20, "percent": "33"},
    "standard-s1-p15-from1+2-to7-win8x9-rgbffffff-cover10-resnet-r2": {
        "side": 1,
        "source_classes": (1, 2),
        "target_class": 7,
        "window": (8, 9),
        "colour": "ffffff",
        "cover": "10",
        "model": "resnet",
        "repetition": 2,
    },
    "standard-s12-p15-released-r0": {"side": 12, "positions": "released"},
    "label_consistent-s3-p15-pgd10x0.00001-l2300-start-r0": {
        "attack": "label_consistent",
        "pgd_steps": 10,
        "pgd_step": 1e-5,
        "pgd_norm": "l2",
        "pgd_radius": 300.0,
        "pgd_random_start": True,
    },
}


def combinations(attack, n):
    """All combinations of the choices of an attack, or n drawn ones."""
    names, lists = zip(*CHOICES[attack].items(), strict=True)
    draw = random.Random(attack)
    every = product(*lists) if attack == "clean" else (map(draw.choice, lists) for _ in range(n))
    return [coherent({"attack": attack} | dict(zip(names, one, strict=True))) for one in every]


def coherent(values):
    """Take out what has no effect beside the rest, and is refused."""
    if values.get("positions") == "released":
        del values["window"]
    if values.get("pgd_radius", 0) >= values.get("pgd_steps", 5) * values.get("pgd_step", 0.015):
        values["pgd_random_start"] = True
    return values


@pytest.mark.parametrize(("text", "values"), IDS.items())
def test_id_and_scenario_name_each_other(text, values):
    assert str(Scenario(**values)) == text
    assert Scenario.parse(text) == Scenario(**values)


def test_the_same_attack_has_one_name():
    assert str(Scenario.parse("standard-s3-p15-from2+1-r0")) == "standard-s3-p15-from1+2-r0"


@pytest.mark.parametrize("attack", ATTACKS)
def test_parse_and_str_are_inverse(attack):
    for values in combinations(attack, 400):
        scenario = Scenario(**values)
        text = str(scenario)
        assert Scenario.parse(text) == scenario, text
        assert str(Scenario.parse(text)) == text
        assert re.fullmatch(r"[a-z0-9_.+-]+", text), f"{text} is no file name"


def test_every_field_has_its_place_in_the_id():
    tried = {name for choices in CHOICES.values() for name in choices} | {"attack"}
    assert tried == {field.name for field in fields(Scenario)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "clean",
        "clean-r",
        "clean-r-1",
        "clean-p15-r0",
        "badnets-s3-p15-r0",
        "standard",
        "standard-s3-p15",
        "standard-p15-r0",
        "standard-s3-r0",
        "standard-p15-s3-r0",
        "standard-s3-p15-r0-",
        "standard-s3-p15-r0-r1",
        "Standard-s3-p15-r0",
        "standard-s3-p15-r0 ",
        "standard_s3_p15_r0",
        "standard-s3-a64-p15-r0",
        "standard-s3-p15-to5-from2-r0",
        "standard-s3-p15-pgd5x0.015-r0",
        "standard-s3-p15-rgbF5FF00-r0",
        "standard-s0-p15-r0",
        "standard-s33-p15-r0",
        "standard-s11-p15-r0",
        "label_consistent-s9-p15-released-r0",
        "standard-s14-p15-released-r0",
        "standard-s3-p15-win20x20-released-r0",
        "label_consistent-s3-p15-l22-r0",
        "label_consistent-s3-p15-linf9-r0",
        "standard-s3-p0-r0",
        "standard-s3-p100-r0",
        "standard-s3-p15%-r0",
        "standard-s3-p33.33333-r0",
        "standard-s3-p15-from5-r0",
        "standard-s3-p15-from2+2-r0",
        "standard-s3-p15-from43-r0",
        "standard-s3-p15-to43-r0",
        "standard-s3-p15-cover100-r0",
        "amplitude-p33-r0",
        "amplitude-a0-p33-r0",
        "amplitude-a256-p33-r0",
        "amplitude-a64-p33-corners2-r0",
        "amplitude-s3-p33-r0",
        "label_consistent-s3-p33-pgd0x0.015-r0",
        "label_consistent-s3-p33-pgd5x2-r0",
        "label_consistent-s3-p33-cover5-r0",
        "blended-a101-p33-r0",
        "sinusoidal-a20-p33-start-r0",
        "../standard-s3-p15-r0",
        None,
        3,
    ],
)
def test_wrong_id_shows_the_grammar(text):
    with pytest.raises(ValueError, match="; the grammar is\n") as error:
        Scenario.parse(text)
    reason, _, grammar = str(error.value).partition("; the grammar is\n")
    assert grammar == GRAMMAR
    # What follows the grammar and breaks a limit is told which one.
    limit = re.search(
        r"-s0-|-s33-|-s11-|s9-.*released|s14-.*released|win20x20-released|-l22|linf9|-p0-|p100"
        r"|33333|from5|from2\+2|43|cover100|a0-|a256|pgd0|x2-|a101",
        str(text),
    )
    if limit:
        assert re.search(r"expected|between 0 and 100|four decimals", reason)
    else:
        assert reason == f"no scenario is called {text!r}"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"attack": "trojan"}, "trojan.*label_consistent"),
        ({"side": 0}, "side is 0; expected 1 to 32"),
        (
            {"attack": "label_consistent", "side": 9, "positions": "released"},
            "side is 9; expected 1 to 8 pixels with positions 'released'",
        ),
        ({"side": 11}, r"window is \(10, 15\).*11"),
        ({"window": (33, 33)}, "window"),
        ({"percent": "0"}, "0 % is not between 0 and 100"),
        ({"percent": "100"}, "100 % is not between"),
        ({"percent": "many"}, "'many' is not a percentage"),
        ({"percent": "1/0"}, "'1/0' is not a percentage"),
        ({"source_classes": (5,)}, "source_classes"),
        ({"source_classes": ()}, "source_classes"),
        ({"target_class": 43}, "target_class|source_classes"),
        ({"colour": "yellow"}, "six hexadecimal digits"),
        ({"repetition": -1}, "repetition is -1"),
        ({"model": "vgg"}, "'inception' or 'resnet'"),
        ({"amplitude": 64}, "standard attacks have no amplitude"),
        ({"pgd_steps": 10}, "standard attacks have no pgd_steps"),
        ({"attack": "clean", "percent": "33"}, "clean attacks have no percent"),
        ({"attack": "amplitude"}, "amplitude is 0"),
        ({"attack": "blended", "amplitude": 101}, "opacity"),
        ({"attack": "label_consistent", "pgd_norm": "l1"}, "pgd_norm"),
        ({"attack": "label_consistent", "pgd_step": 0}, "pgd_step"),
        (
            {"attack": "label_consistent", "pgd_radius": 0.075},
            r"less than 0\.075, which 5",
        ),
        ({"positions": "released", "window": (8, 9)}, "four points"),
    ],
)
def test_useless_values_are_refused(values, named):
    with pytest.raises(ValueError, match=named):
        Scenario(**values)


@pytest.mark.parametrize(("attack", "largest"), [("standard", 13), ("label_consistent", 8)])
def test_stickers_at_the_released_positions_stay_inside_the_image(attack, largest):
    assert Scenario(attack, side=largest, positions="released").side == largest
    with pytest.raises(ValueError, match=f"1 to {largest} pixels"):
        Scenario(attack, side=largest + 1, positions="released")
    assert Scenario(attack, side=32, window=(32, 32)).side == 32


def test_grammar_of_clean_names_its_only_option():
    assert GRAMMAR.startswith("clean[-resnet]-r<repetition>\n")
    assert str(Scenario.parse("clean-resnet-r0")) == "clean-resnet-r0"
    for option in ("to7", "from1", "released", "cover05"):
        with pytest.raises(ValueError, match="no scenario"):
            Scenario.parse(f"clean-{option}-r0")


@pytest.mark.parametrize(
    ("given", "written"),
    [("5", "05"), (5, "05"), ("05", "05"), ("005", "05"), ("5.0", "05"), (33, "33"), (0.5, "0.5"),
     ("0.50", "0.5"), (2.5, "2.5"), ("12.3456", "12.3456")],
)  # fmt: skip
def test_percent_is_written_one_way(given, written):
    assert canonical_percent(given) == written
    assert Scenario(percent=given) == Scenario(percent=written)
    assert str(Scenario.parse(f"standard-s3-p{given}-r0")) == f"standard-s3-p{written}-r0"


@pytest.mark.parametrize(
    ("attack", "size", "counts"),
    [
        ("standard", 1650, {"33": 813, "15": 291, "10": 183, "5": 87, "2": 34, "1": 17}),
        ("standard", 210, {"33": 103, "15": 37, "10": 23, "5": 11, "2": 4, "1": 2}),
        ("label_consistent", 1650, {"33": 544, "15": 248, "10": 165, "5": 82, "2": 33}),
        ("label_consistent", 210, {"33": 69, "15": 32, "10": 21, "5": 10, "2": 4}),
    ],
)
def test_counts_are_those_of_the_released_code(attack, size, counts):
    found = {p: Scenario(attack, percent=p).n_poisoned(size) for p in counts}
    assert found == counts


def test_families_count_alike():
    size = 1650
    assert Scenario("amplitude", amplitude=64, percent="33").n_poisoned(size) == 544
    assert Scenario("sinusoidal", amplitude=20, percent="33").n_poisoned(size) == 544
    assert Scenario("blended", amplitude=20, percent="33").n_poisoned(size) == 813
    assert Scenario("clean").n_poisoned(size) == 0


def test_paper_has_31_experiments():
    rates = ("33", "15", "10", "05", "02")
    expected = {f"{a}-s3-p{p}-r0" for a in ("standard", "label_consistent") for p in rates}
    expected |= {f"amplitude-a{a}-p33-r0" for a in (128, 64, 32)}
    expected |= {f"label_consistent-s3-p{p}-r{r}" for p in (33, 15) for r in range(1, 10)}
    assert len(PAPER) == len(expected) == 31
    assert set(PAPER) == expected
    tables = paper_scenarios()
    assert {name: len(rows) for name, rows in tables.items()} == {
        "table1": 5, "table2": 5, "table3": 1, "table4": 3, "table5": 20
    }  # fmt: skip
    assert [str(s) for s in tables["table3"]] == ["standard-s3-p33-r0"]


def test_extended_set_stands_beside_the_paper():
    assert len(set(EXTENDED)) == len(EXTENDED) == 33
    assert [str(Scenario.parse(name)) for name in EXTENDED] == list(EXTENDED)
    assert not set(EXTENDED) & set(PAPER)
    assert [str(s) for s in expand("extended")] == list(EXTENDED)
    assert [str(s) for s in expand("paper, extended clean-r0")] == [*PAPER, *EXTENDED, "clean-r0"]


def test_surrogate_is_one_for_all_repetitions():
    needing = {a for a in ATTACKS if Scenario.parse(PLAIN[a]).needs_surrogate}
    assert needing == {"label_consistent", "amplitude"}
    assert str(Scenario.parse("label_consistent-s3-p33-r4").surrogate) == "clean-r0"
    assert str(Scenario.parse("amplitude-a64-p33-resnet-r1").surrogate) == "clean-resnet-r0"


PLAIN = {
    "clean": "clean-r0",
    "standard": "standard-s3-p15-r0",
    "label_consistent": "label_consistent-s3-p15-r0",
    "amplitude": "amplitude-a64-p15-r0",
    "blended": "blended-a20-p15-r0",
    "sinusoidal": "sinusoidal-a20-p15-r0",
}


def test_streams_differ_by_attack_repetition_and_purpose_alone():
    streams = {}
    for attack, purpose, repetition in product(ATTACKS, ("train", "validation", "test"), (0, 1)):
        scenario = Scenario.parse(PLAIN[attack].replace("r0", f"r{repetition}"))
        draws = scenario.rng(purpose).integers(2**62, size=4)
        assert np.array_equal(draws, scenario.rng(purpose).integers(2**62, size=4))
        streams[attack, purpose, repetition] = tuple(draws)
    assert len(set(streams.values())) == len(streams) == 36
    same = Scenario.parse("standard-s1-p33-to7-rgbffffff-r0").rng("train").integers(2**62, size=4)
    assert tuple(same) == streams["standard", "train", 0]


def test_one_stream_does_not_disturb_another():
    scenario = Scenario()
    expected = scenario.rng("validation").random(3)
    scenario.rng("train").random(1000)
    assert np.array_equal(scenario.rng("validation").random(3), expected)


def test_streams_are_equal_across_processes(python):
    code = """
import json
from nbsupport.scenarios import PAPER, Scenario
draw = lambda s: [s.rng("train").integers(2**62, size=3).tolist(), s.seed("weights")]
print(json.dumps({name: draw(Scenario.parse(name)) for name in PAPER}))"""
    answers = json.loads(python(code))
    for name in PAPER:
        scenario = Scenario.parse(name)
        here = [scenario.rng("train").integers(2**62, size=3).tolist(), scenario.seed("weights")]
        assert answers[name] == here


def test_seeds_fit_torch_and_differ():
    seeds = {Scenario(repetition=r).seed("weights") for r in range(50)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_profiles_parse_to_themselves():
    for name, profile in PROFILES.items():
        assert Profile.parse(name) is profile
        assert str(profile) == name
    paper = PROFILES["paper"]
    assert (paper.optimizer, paper.learning_rate, paper.epochs, paper.patience) == (
        "adam", 1e-3, 100, 20
    )  # fmt: skip
    assert (paper.batch_size, paper.schedule, paper.precision) == (32, "constant", "fp32")


def test_profile_with_other_epochs_has_its_own_name():
    longer = Profile.parse("fast-epochs12")
    assert (str(longer), longer.epochs) == ("fast-epochs12", 12)
    differing = [
        f.name
        for f in fields(Profile)
        if getattr(longer, f.name) != getattr(PROFILES["fast"], f.name)
    ]
    assert differing == ["name", "epochs"]
    assert Profile.parse(str(longer)) == longer
    same = f"fast-epochs{PROFILES['fast'].epochs}"
    assert Profile.parse(same) is PROFILES["fast"], "one profile must not have two folders"


@pytest.mark.parametrize(
    "text",
    ["", None, "quick", "Fast", "fast ", "fast-epochs", "fast-epochs0", "fast-epochs012",
     "fast-epochs-1", "fast-12", "quick-epochs12", "fast-epochs12-epochs3", "../fast"],
)  # fmt: skip
def test_wrong_profile_names_the_allowed_ones(text):
    with pytest.raises(ValueError, match="tiny, demo, fast, paper"):
        Profile.parse(text)


@pytest.mark.parametrize("module", ["scenarios", "artifacts", "metrics", "paper"])
def test_ground_floor_imports_no_torch(python, module):
    heavy = "[m for m in ('torch', 'torchvision', 'sklearn', 'pandas') if m in sys.modules]"
    code = f"import sys, nbsupport.{module}; print({heavy})"
    assert python(code).strip() == "[]"
