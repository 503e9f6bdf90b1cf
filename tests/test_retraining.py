from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nbsupport import artifacts, attacks, evaluation, metrics, results, retraining
from nbsupport.artifacts import FILTERS, ArtifactError, Run
from nbsupport.scenarios import PROFILES, Scenario

CPU = torch.device("cpu")
PROFILE = replace(PROFILES["tiny"], epochs=2, precision="fp32")


def network(*_, seed, **__):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 43))


@pytest.fixture
def run(tmp_path, monkeypatch, dataset):
    """A run that is finished up to detection, on images and with a network of milliseconds."""
    monkeypatch.setattr(evaluation.data, "load", lambda *_, **__: dataset)
    monkeypatch.setattr(retraining, "build", network)
    run = Run(tmp_path, PROFILE, Scenario("standard", percent="15"))
    manifest = attacks.poison(run.scenario, dataset)
    run.save("attack", manifest.arrays(), {"fingerprint": dataset.fingerprint})
    found = evaluation.evaluate(network(seed=0), dataset, run.scenario, CPU).record()
    found |= {"counts": manifest.counts(dataset, 5), "fingerprint": dataset.fingerprint}
    weights = network(seed=0).state_dict()
    run.save("training", weights, found, made_from=((run, "attack"),), parameters={"device": "cpu"})
    judge(run, dataset)
    return run


def judge(run, dataset, *, missed=2, accused=1, seed=0):
    """Leave verdicts: PoisonDetector misses some and accuses some, the clustering finds all."""
    manifest = attacks.Manifest(**run.arrays("attack"))
    suspicious = attacks.apply(manifest, dataset).train.of_class(5)
    ids = np.random.default_rng(seed).permutation(suspicious.ids.numpy())
    truth = np.isin(ids, manifest.poisoned_ids)
    ours = truth.copy()
    ours[np.flatnonzero(truth)[:missed]] = False
    ours[np.flatnonzero(~truth)[:accused]] = True
    arrays = {
        "ids": ids,
        "truth": truth,
        "heatmap_poisoned": truth,
        "poison_detector_poisoned": ours,
    }
    run.save("detection", arrays, {}, made_from=((run, "attack"),))
    return arrays


@pytest.fixture
def fitted(monkeypatch):
    """Ids that each training sees: of training images and of validation images."""
    seen, fit = [], retraining.fit

    def spy(model, train, validation, *rest, **options):
        seen.append((set(train.ids.tolist()), set(validation.ids.tolist())))
        return fit(model, train, validation, *rest, **options)

    monkeypatch.setattr(retraining, "fit", spy)
    return seen


def test_a_filter_is_what_it_says(run):
    found = run.arrays("detection")
    ids, truth, ours = found["ids"], found["truth"], found["poison_detector_poisoned"]
    chosen = {name: retraining.choose(run, name) for name in FILTERS}
    assert set(chosen["perfect"]) == set(ids[truth])
    assert set(chosen["heatmap"]) == set(ids[truth])
    assert set(chosen["poison_detector"]) == set(ids[ours])
    assert len(chosen["random"]) == ours.sum() == len(set(chosen["random"]))
    assert set(chosen["random"]) < set(ids)
    assert set(chosen["random"]) != set(chosen["poison_detector"])
    record = run.load("retrained/poison_detector/filter")["result"]
    assert record == {"n": truth.sum() - 1, "n_poisoned": truth.sum() - 2, "n_missed": 2}


def test_the_order_of_the_verdicts_changes_no_filter(run, dataset):
    chosen = {name: retraining.choose(run, name) for name in FILTERS}
    before = {n: run.payload(f"retrained/{n}/filter").read_bytes() for n in FILTERS}
    arrays = run.arrays("detection")
    order = np.random.default_rng(5).permutation(len(arrays["ids"]))
    turned = {name: values[order] for name, values in arrays.items()}
    run.save("detection", turned, {}, made_from=((run, "attack"),))
    for name in FILTERS:
        assert np.array_equal(retraining.choose(run, name), chosen[name])
        assert run.payload(f"retrained/{name}/filter").read_bytes() == before[name]


def test_unknown_filters_and_missing_verdicts_are_refused(run, dataset):
    with pytest.raises(ValueError, match="no filter is called 'perfct'; choose one of poison_det"):
        retraining.choose(run, "perfct")
    arrays = run.arrays("detection")
    run.save("detection", {name: arrays[name] for name in ("ids", "truth")}, {})
    for name, judge in (("heatmap", "heatmap"), ("random", "poison_detector")):
        with pytest.raises(ValueError, match=f"{judge} has not judged standard-s3-p15-r0"):
            retraining.choose(run, name)
    run.path("detection").unlink()
    with pytest.raises(ArtifactError, match=r"detection\.json is missing; make it with"):
        retraining.choose(run, "perfect")
    with pytest.raises(ArtifactError, match=r"perfect/filter\.json is missing") as error:
        retraining.retrain(run, "perfect", "auto", CPU)
    assert "notebooks/06_beyond.ipynb" in str(error.value)
    assert "-p make filters" in str(error.value)


def test_only_the_chosen_training_images_are_missing(run, fitted):
    _, manifest, poisoned = evaluation.load_poisoned(run, "auto")
    everything = set(poisoned.train.ids.tolist())
    removed = set(retraining.choose(run, "poison_detector").tolist())
    found = retraining.retrain(run, "poison_detector", "auto", CPU)
    (train, validation) = fitted[0]
    assert everything - train == removed
    assert validation == set(poisoned.validation.ids.tolist())
    assert set(manifest.poisoned_ids.tolist()) & validation
    assert (found["n_removed"], found["same_as"]) == (len(removed), None)
    assert len(found["history"]) == PROFILE.epochs


def test_all_else_is_as_in_the_first_training(run, monkeypatch):
    attack, told = run.scenario, {}

    def build(kind, **options):
        told["build"] = (kind, options)
        return network(seed=options["seed"])

    def fit(model, train, validation, profile, **options):
        told["fit"] = (profile, options["seed"])
        return []

    monkeypatch.setattr(retraining, "build", build)
    monkeypatch.setattr(retraining, "fit", fit)
    retraining.choose(run, "perfect")
    retraining.retrain(run, "perfect", "auto", CPU)
    assert told["build"] == (
        "inception", {"dropout": PROFILE.dropout, "seed": attack.seed("weights")},
    )  # fmt: skip
    assert told["fit"] == (PROFILE, attack.seed("training"))


def test_a_retraining_goes_on_after_an_interruption(run):
    retraining.choose(run, "perfect")
    stage = "retrained/perfect/training"

    def stop(done, total, text):
        if "epoch 2" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retraining.retrain(run, "perfect", "auto", CPU, progress=stop)
    checkpoint = run.path(stage).with_name("training.checkpoint.pt")
    assert checkpoint.exists()
    assert not run.has(stage)
    said = []
    resumed = retraining.retrain(run, "perfect", "auto", CPU, progress=lambda *c: said.append(c[2]))
    assert all("epoch 2" in line for line in said)
    weights = run.weights(stage)
    assert not checkpoint.exists()
    run.path(stage).unlink()
    whole = retraining.retrain(run, "perfect", "auto", CPU)
    assert [e["loss"] for e in whole["history"]] == [e["loss"] for e in resumed["history"]]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.weights(stage).items())


def test_a_checkpoint_of_another_filter_is_left_aside(run, fitted):
    retraining.choose(run, "perfect")

    def stop(done, total, text):
        if "epoch 2" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retraining.retrain(run, "perfect", "auto", CPU, progress=stop)
    arrays = run.arrays("detection")
    arrays["truth"][np.flatnonzero(arrays["truth"])[0]] = False
    run.save("detection", arrays, {}, made_from=((run, "attack"),))
    retraining.choose(run, "perfect")
    said = []
    retraining.retrain(run, "perfect", "auto", CPU, progress=lambda *c: said.append(c[2]))
    assert said[0].startswith("epoch 1")


def test_the_same_images_give_the_same_network_once(run, dataset, fitted, monkeypatch):
    for name in FILTERS:
        retraining.choose(run, name)
    with monkeypatch.context() as there:
        there.setattr(retraining, "describe", lambda *_: "another machine")
        first = retraining.retrain(run, "perfect", "auto", CPU)
    again = retraining.retrain(run, "heatmap", "auto", CPU)
    assert len(fitted) == 1
    # It was computed where the first was.
    assert run.load("retrained/heatmap/training")["device"] == "another machine"
    assert again["same_as"] == "retrained/perfect/training"
    assert again["confusion"] == artifacts._plain(first["confusion"])
    ours, theirs = (run.weights(f"retrained/{n}/training") for n in ("perfect", "heatmap"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    retraining.retrain(run, "random", "auto", CPU)
    assert len(fitted) == 2
    judge(run, dataset, missed=99, accused=0)
    retraining.choose(run, "poison_detector")
    nothing = retraining.retrain(run, "poison_detector", "auto", CPU)
    assert len(fitted) == 2
    assert (nothing["n_removed"], nothing["same_as"]) == (0, "training")


def test_a_stale_retraining_is_refused_and_the_same_verdict_keeps_it(run, dataset):
    chosen, stage = "retrained/poison_detector/filter", "retrained/poison_detector/training"
    retraining.choose(run, "poison_detector")
    retraining.retrain(run, "poison_detector", "auto", CPU)
    arrays = run.arrays("detection")
    run.save("detection", arrays | {"more": np.ones(3)}, {}, made_from=((run, "attack"),))
    with pytest.raises(ArtifactError, match=r"filter\.json is stale: .*detection\.npz has changed"):
        run.load(chosen)
    retraining.choose(run, "poison_detector")
    assert run.has(stage), "another method's scores cost a training"
    judge(run, dataset, missed=1)
    retraining.choose(run, "poison_detector")
    with pytest.raises(ArtifactError, match=r"training\.json is stale: .*removed\.npz has changed"):
        run.load(stage)
    assert run.has("training")
    assert list(retraining.compare(run)["filter"]) == ["before"]


def test_retrainings_of_other_filters_recipes_and_runs_are_refused(run, monkeypatch):
    for name in ("perfect", "random"):
        retraining.choose(run, name)
    retraining.retrain(run, "perfect", "auto", CPU)
    stage = "retrained/perfect/training"
    for suffix in ("training.json", "model.safetensors"):
        source = run.folder / "retrained/perfect" / suffix
        (run.folder / "retrained/random" / suffix).write_bytes(source.read_bytes())
    with pytest.raises(ArtifactError, match="belongs to stage retrained/perfect/training, not"):
        run.load("retrained/random/training")
    assert "-p make perfect" in run.command(stage)
    newer = replace(artifacts.STAGES[stage], version=7)
    monkeypatch.setitem(artifacts.STAGES, stage, newer)
    with pytest.raises(ArtifactError, match=r"made by version 1 .* has version 7"):
        run.load(stage)


def test_networks_are_compared_before_and_after(run):
    for name in FILTERS:
        retraining.choose(run, name)
    retraining.retrain(run, "random", "auto", CPU)
    retraining.retrain(run, "poison_detector", "auto", CPU)
    table = retraining.compare(run).set_index("filter")
    assert list(table.index) == ["before", "poison_detector", "random"]
    truth = run.arrays("detection")["truth"].sum()
    before = run.load("training")["result"]
    assert before["counts"]["train"]["n_poisoned"] == truth
    assert table["poison_left"]["before"] == truth
    assert table["poison_left"]["poison_detector"] == 2
    assert table["removed"]["poison_detector"] == truth - 1
    assert (table["removed"] >= table["poison_removed"]).all()
    assert table["clean_accuracy"]["before"] == pytest.approx(before["clean_accuracy"])
    hits = round(before["asr"] * before["n_asr"] / 100)
    assert table["low"]["before"] == pytest.approx(metrics.wilson(hits, before["n_asr"]).low)
    assert (table["rate"] == "asr").all()
    assert ((table["low"] <= table["success"]) & (table["success"] <= table["high"])).all()


def test_the_accuracy_counts_the_images_of_the_confusion():
    found = retraining._accuracy([[40, 10], [5, 45]])
    assert found == metrics.wilson(85, 100)


def test_second_networks_of_all_runs_stand_in_one_table(run):
    assert len(retraining.collect([run])) == 0
    retraining.choose(run, "perfect")
    retraining.retrain(run, "perfect", "auto", CPU)
    other = run.of(Scenario("standard", percent="33"))
    other.save("training", network(seed=0).state_dict(), run.load("training")["result"])
    third = run.of(Scenario("standard", percent="15", repetition=1))
    attack = run.arrays("attack")
    third.save("attack", attack, run.load("attack")["result"])
    third.save("training", network(seed=0).state_dict(), run.load("training")["result"])
    verdicts = run.arrays("detection")
    third.save("detection", verdicts, {}, made_from=((third, "attack"),))
    retraining.choose(third, "random")
    retraining.retrain(third, "random", "auto", CPU)
    table = retraining.collect([other, run, third])
    assert table.columns[:2].tolist() == ["scenario", "filter"]
    names = [str(run.scenario)] * 2 + [str(third.scenario)] * 2
    assert table["scenario"].tolist() == names, "the other has no second network"
    assert table["filter"].tolist() == ["before", "perfect", "before", "random"]
    stages = ("training", "retrained/perfect/training", "retrained/random/training")
    (told,) = results.provenance([run], stages)["runs"].values()
    assert list(told) == list(stages[:2])
    run.path("training").unlink()
    with pytest.raises(ArtifactError, match=r"training\.json is missing"):
        results.provenance([run], stages)


def test_label_consistent_attacks_are_compared_by_their_masr(run, dataset):
    other = run.of(Scenario("label_consistent", percent="15"))
    found = run.load("training")["result"]
    other.save("training", network(seed=0).state_dict(), found)
    table = retraining.compare(other)
    assert list(table["rate"]) == ["masr"]
    assert table["success"][0] == found["masr"]
    assert table[["low", "high"]].isna().all(axis=None)
