"""Benchmarks are run by hand and seldom: here they are at least loaded, and the one that needs no engine is run."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks
from benchmarks import planning

NAMES = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_loaded(name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_planning_is_measured_on_an_empty_store_and_on_one_that_is_half_done() -> None:
    empty, half = planning.measured(least_stages=200)
    assert empty["done"] == 0
    assert 0 < half["done"] < half["stages"] == empty["stages"] >= 200
    assert all(row["plan_s"] == row["lower_s"] + row["text_s"] > 0 for row in (empty, half))
