from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import nn

from nbsupport import devices
from nbsupport.artifacts import STAGES, Run
from nbsupport.data import Split
from nbsupport.evaluation import predict
from nbsupport.scenarios import PROFILES, Scenario
from nbsupport.training import TrainingError, _optimizer, fit, identity

CPU = torch.device("cpu")
CONSTANT = replace(PROFILES["paper"], batch_size=16, epochs=4, learning_rate=3e-3, data="synthetic")
ONE_CYCLE = replace(PROFILES["fast"], batch_size=16, epochs=4, precision="fp32")
both_schedules = pytest.mark.parametrize("profile", [CONSTANT, ONE_CYCLE], ids=["paper", "fast"])


def night_and_day(n, seed):
    """Dark images are class 0, bright ones class 1: augmentation leaves that alone."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    images = rng.integers(0, 60, (n, 3, 32, 32)) + 130 * labels[:, None, None, None]
    ids = torch.arange(n)
    return Split(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels), ids, ids)


def contradict(split):
    """Exchange the labels: the better a network learns, the higher its loss here."""
    return replace(split, labels=1 - split.labels)


@pytest.fixture(scope="module")
def train():
    return night_and_day(150, seed=0)  # ten steps an epoch, the last one of six images


@pytest.fixture(scope="module")
def validation():
    return night_and_day(40, seed=1)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 8, stride=8),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(64, 2),
        )


def weights(model):
    state = model.state_dict()
    return sha256(b"".join(state[k].numpy().tobytes() for k in sorted(state))).hexdigest()


def run(train, validation, profile, seed=0, **options):
    model = network()
    return model, fit(model, train, validation, profile, seed=seed, device=CPU, **options)


def without_seconds(history):
    return [replace(epoch, seconds=0) for epoch in history]


@both_schedules
def test_fit_learns(train, validation, profile):
    model, history = run(train, validation, profile)
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4]
    assert history[-1].loss < 0.6 * history[0].loss
    assert history[-1].validation_loss < history[0].validation_loss
    assert max(epoch.validation_accuracy for epoch in history) == 100
    assert all(epoch.seconds > 0 for epoch in history)
    assert not model.training


def test_learning_rate_follows_the_schedule(train, validation):
    constant = run(train, validation, CONSTANT)[1]
    assert [epoch.learning_rate for epoch in constant] == [3e-3] * 4
    cycle = [epoch.learning_rate for epoch in run(train, validation, ONE_CYCLE)[1]]
    assert cycle[0] == max(cycle) <= ONE_CYCLE.learning_rate
    assert cycle[-1] < ONE_CYCLE.learning_rate / 100


@pytest.mark.parametrize(
    ("profile", "kind"), [("paper", torch.optim.Adam), ("fast", torch.optim.AdamW)]
)
def test_the_optimiser_is_that_of_the_profile(profile, kind):
    profile = replace(PROFILES[profile], weight_decay=0.07)
    optimizer, _ = _optimizer(network(), profile, steps=10)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.07


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize("half", [False, True], ids=["slow at bfloat16", "quick at bfloat16"])
def test_training_computes_in_the_precision_of_the_profile(
    train, validation, half, precision, monkeypatch
):
    monkeypatch.setattr(devices, "_has_bf16", lambda _: half)
    kinds, model = set(), network()
    model[-1].register_forward_hook(lambda m, _, y: kinds.add(y.dtype) if m.training else None)
    profile = replace(ONE_CYCLE, epochs=1, precision=precision)
    fit(model, train, validation, profile, seed=0, device=CPU)
    assert kinds == {torch.bfloat16 if half and precision == "auto" else torch.float32}


def test_best_weights_are_restored(train, validation):
    against = contradict(validation)
    model, history = run(train, against, CONSTANT)
    losses = [epoch.validation_loss for epoch in history]
    assert len(losses) == 4
    assert losses.index(min(losses)) == 0, "the first epoch is the best against contradiction"
    first, _ = run(train, against, replace(CONSTANT, epochs=1))
    assert weights(model) == weights(first)
    logits = predict(model, against.images, CPU)
    assert nn.functional.cross_entropy(logits, against.labels).item() == pytest.approx(losses[0])
    last, _ = run(train, validation, CONSTANT)
    assert weights(model) != weights(last)


def test_recorded_validation_is_that_of_the_network(train, validation):
    model, history = run(train, validation, CONSTANT)
    best = min(history, key=lambda epoch: epoch.validation_loss)
    logits = predict(model, validation.images, CPU)
    loss = nn.functional.cross_entropy(logits, validation.labels).item()
    assert loss == pytest.approx(best.validation_loss)
    right = (logits.argmax(1) == validation.labels).float().mean().item()
    assert 100 * right == pytest.approx(best.validation_accuracy)


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_after_patience(train, validation, patience):
    profile = replace(CONSTANT, epochs=9, patience=patience)
    _, history = run(train, contradict(validation), profile)
    assert len(history) == 1 + patience
    _, history = run(train, validation, profile)
    losses = [epoch.validation_loss for epoch in history]
    assert losses.index(min(losses)) > 1, "it goes on as long as it gets better"


def test_equal_loss_counts_as_no_worse(train, validation):
    """As in the released code; a network that stands still is not stopped."""
    still = replace(CONSTANT, learning_rate=0.0, patience=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    history = fit(model, train, validation, still, seed=0, device=CPU)
    assert len(history) == 4
    assert len({epoch.validation_loss for epoch in history}) == 1


class PowerCutError(Exception):
    pass


def interrupt_in(epoch):
    """Stop in the middle of an epoch; in any if it is 0."""

    def progress(done, total, text):
        if not epoch or text.startswith(f"epoch {epoch} of"):
            raise PowerCutError(text)

    return progress


@both_schedules
@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_resumed_training_ends_in_the_same_weights(train, validation, profile, epoch, tmp_path):
    whole, expected = run(train, validation, profile)
    checkpoint = tmp_path / "folder" / "training.checkpoint.pt"
    with pytest.raises(PowerCutError):
        run(
            train, validation, profile, checkpoint=checkpoint, identity="this",
            progress=interrupt_in(epoch),
        )  # fmt: skip
    assert checkpoint.exists() == (epoch > 1)
    started = []
    resumed, history = run(
        train, validation, profile, checkpoint=checkpoint, identity="this",
        progress=lambda done, total, text: started.append(text.split(":")[0].split(" of")[0]),
    )  # fmt: skip
    assert started[0] == f"epoch {epoch}", "finished epochs are not trained again"
    assert without_seconds(history) == without_seconds(expected)
    assert weights(resumed) == weights(whole)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_resumed_training_remembers_its_best_epoch(train, validation, tmp_path):
    against = contradict(validation)
    whole, _ = run(train, against, CONSTANT)
    options = {"checkpoint": tmp_path / "c.pt", "identity": "this"}
    with pytest.raises(PowerCutError):
        run(train, against, CONSTANT, progress=interrupt_in(3), **options)
    resumed, history = run(train, against, CONSTANT, **options)
    assert len(history) == 4
    assert weights(resumed) == weights(whole)


def test_finished_training_is_not_repeated(train, validation, tmp_path):
    options = {"checkpoint": tmp_path / "c.pt", "identity": "this"}
    stopping = replace(CONSTANT, epochs=9, patience=1)
    for profile, labels in ((CONSTANT, validation), (stopping, contradict(validation))):
        model, history = run(train, labels, profile, **options)
        again, same = run(train, labels, profile, **options, progress=interrupt_in(0))
        assert same == history
        assert weights(again) == weights(model)
        options["checkpoint"].unlink()


def test_foreign_checkpoint_is_left_aside(train, validation, tmp_path):
    checkpoint = tmp_path / "c.pt"
    run(train, validation, CONSTANT, seed=7, checkpoint=checkpoint, identity="another")
    expected, history = run(train, validation, CONSTANT)
    model, found = run(train, validation, CONSTANT, checkpoint=checkpoint, identity="this")
    assert weights(model) == weights(expected)
    assert without_seconds(found) == without_seconds(history)
    _, again = run(train, validation, CONSTANT, checkpoint=checkpoint, identity="this")
    assert again == found, "the file now holds this training"


@pytest.mark.parametrize("damage", ["half", "empty", "another"])
def test_a_damaged_checkpoint_is_named_and_begun_anew(train, validation, tmp_path, damage):
    checkpoint = tmp_path / "c.pt"
    options = {"checkpoint": checkpoint, "identity": "this"}
    model, history = run(train, validation, CONSTANT, **options)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(
        {"half": whole[: len(whole) // 2], "empty": b"", "another": b"eee"}[damage]
    )
    with pytest.warns(UserWarning, match=r"c\.pt cannot be read .*: training begins anew"):
        again, found = run(train, validation, CONSTANT, **options)
    assert weights(again) == weights(model)
    assert without_seconds(found) == without_seconds(history)
    assert len(checkpoint.read_bytes()) == pytest.approx(len(whole), rel=0.01)


def test_settings_of_cudnn_are_left_as_they_were(train, validation):
    seen, cudnn = [], torch.backends.cudnn
    keys = "deterministic", "benchmark"
    before = [getattr(cudnn, key) for key in keys]
    try:
        cudnn.deterministic, cudnn.benchmark = False, True
        run(
            train, validation, replace(CONSTANT, epochs=1),
            progress=lambda *_: seen.append([getattr(cudnn, key) for key in keys]),
        )  # fmt: skip
        assert seen[0] == [True, False]
        assert [getattr(cudnn, key) for key in keys] == [False, True]
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def test_identity_tells_trainings_apart(tmp_path, monkeypatch):
    one = Run(tmp_path, CONSTANT, Scenario())
    other = replace(one, scenario=Scenario(repetition=1))
    longer = replace(one, profile=replace(CONSTANT, epochs=5))
    names = []
    for each in (longer, one, other):
        each.save("attack", {"ids": np.arange(3)}, {"fingerprint": "a"})
        names.append(identity(each))
    one.save("attack", {"ids": np.arange(3)}, {"fingerprint": "a"}, seconds=9)
    assert identity(one) == names[1]
    one.save("attack", {"ids": np.arange(4)}, {"fingerprint": "a"})
    names.append(identity(one))
    # Without poison the payload is empty, whatever the images are.
    one.save("attack", {"ids": np.arange(4)}, {"fingerprint": "b"})
    names.append(identity(one))
    newer = replace(STAGES["training"], version=STAGES["training"].version + 1)
    monkeypatch.setitem(STAGES, "training", newer)
    assert len({*names, identity(one)}) == 6


@pytest.mark.parametrize("profile", [CONSTANT, replace(CONSTANT, epochs=1, batch_size=150)])
def test_loss_that_is_no_number_gives_advice(train, validation, profile):
    """Also where it shows only on the validation images, after the one step of an epoch."""
    broken = replace(profile, learning_rate=1e30)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    with pytest.raises(TrainingError, match=r"in epoch 1; lower the learning rate.*1e\+30.*fp32"):
        fit(model, train, validation, broken, seed=0, device=CPU)


@pytest.mark.usefixtures("keeps_global_rng")
def test_global_generators_are_left_alone(train, validation):
    run(train, validation, replace(CONSTANT, epochs=1))


def test_seed_alone_decides(train, validation):
    profile = replace(CONSTANT, epochs=1)
    one, _ = run(train, validation, profile, seed=3)
    torch.manual_seed(99)
    same, _ = run(train, validation, profile, seed=3)
    other, _ = run(train, validation, profile, seed=4)
    assert weights(one) == weights(same) != weights(other)


def test_progress_ends_at_all_steps(train, validation):
    calls = []
    run(train, validation, CONSTANT, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert {call[1] for call in calls} == {40}
    assert done == sorted(done)
    assert done[-1] == 40
    assert "epoch 4: loss" in calls[-1][2]


def test_data_is_left_alone(train, validation):
    before = train.images.clone(), validation.images.clone()
    run(train, validation, replace(CONSTANT, epochs=1))
    assert torch.equal(train.images, before[0])
    assert torch.equal(validation.images, before[1])
