"""Our estimators against numbers published with W&P, read from EMPATHY_DATA/welivita_pu/study2.csv."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from empathy.stats.clustered import clustered_mean, label_codes

DATA = os.environ.get("EMPATHY_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="EMPATHY_DATA is not set")
MODELS = {
    "gpt-4": "chatgpt_empathy",
    "llama": "llama_empathy",
    "gemini": "gemini_empathy",
    "mixtral": "mixtral_empathy",
}


@pytest.fixture(scope="module")
def study() -> pl.DataFrame:
    return pl.read_csv(Path(DATA or "") / "welivita_pu" / "study2.csv")


def test_paired_win_rate_of_gpt4_over_human(study: pl.DataFrame) -> None:
    ours, human = (study[f"rating_{c}"].to_numpy() for c in ("chatgpt_empathy", "human"))
    scores = (np.sign(ours - human) + 1) / 2
    clustered = clustered_mean(scores, label_codes(study["part_no"].to_numpy()))
    by_row = clustered_mean(scores, np.arange(len(scores)))
    assert round(clustered.value, 5) == 0.58975
    assert round(by_row.se, 5) == 0.00821
    assert round(clustered.se, 5) == 0.00968
    assert (clustered.n, clustered.clusters, by_row.clusters) == (2000, 200, 2000)


@pytest.mark.parametrize(
    ("model", "good", "gain"),
    [("gpt-4", 1295, 31.34), ("llama", 1219, 23.63), ("gemini", 1081, 9.63), ("mixtral", 1192, 20.89)],
)
def test_relative_gain_in_good_replies(study: pl.DataFrame, model: str, good: int, gain: float) -> None:
    clusters = label_codes(study["part_no"].to_numpy())
    is_good = {n: (study[f"rating_{c}"] == 3).to_numpy().astype(float) for n, c in {"human": "human", **MODELS}.items()}
    human, ours = (clustered_mean(is_good[n], clusters).value * 2000 for n in ("human", model))
    assert (round(human), round(ours)) == (986, good)
    assert round(100 * (ours - human) / human, 2) == gain
