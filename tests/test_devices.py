import platform

import pytest
import torch

from nbsupport import devices
from nbsupport.devices import autocast, describe, pick_device, tune_allocator


@pytest.mark.parametrize("there", [True, False])
def test_auto_takes_the_gpu_where_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device() == pick_device("auto") == torch.device("cuda" if there else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


def test_missing_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here; use 'auto' or 'cpu'"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cuda") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:0", "", "CPU"])
def test_unknown_device_names_the_allowed_ones(name):
    with pytest.raises(ValueError, match="choose 'auto', 'cpu' or 'cuda'"):
        pick_device(name)


@pytest.mark.parametrize(
    ("precision", "units", "dtype"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("fp32", True, torch.float32),
    ],
)
def test_bfloat16_is_used_only_when_asked_and_there(monkeypatch, precision, units, dtype):
    monkeypatch.setattr(devices, "_has_bf16", lambda device_type: units)
    with autocast(torch.device("cpu"), precision):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_a_record_tells_what_computed_and_how_precisely(monkeypatch):
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    assert describe(cpu) == f"cpu, {threads} threads"
    for units, precision, name in (
        (True, "auto", "bfloat16"),
        (False, "auto", "float32"),
        (True, "fp32", "float32"),
    ):
        monkeypatch.setattr(devices, "_has_bf16", lambda _, units=units: units)
        assert describe(cpu, precision) == f"cpu, {threads} threads, {name}"


@pytest.mark.parametrize("there", [True, False])
def test_units_for_bfloat16_are_looked_up(monkeypatch, there):
    devices._has_bf16.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": there})
    assert devices._has_bf16("cpu") is there
    devices._has_bf16.cache_clear()


def test_allocator_is_tuned_on_glibc_alone(monkeypatch):
    assert tune_allocator() == (platform.libc_ver()[0] == "glibc")
    tune_allocator.cache_clear()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert tune_allocator() is False
    tune_allocator.cache_clear()


def test_fewer_large_images_fit():
    sizes = {16: 256, 32: 256, 64: 64, 224: 5, 1000: 1}
    for side, fit in sizes.items():
        assert devices.at_a_time(256, torch.zeros(1, 1, side, side)) == fit
