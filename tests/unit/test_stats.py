"""Expected values are worked out by hand, or by brute force, in the comments beside them."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from empathy.columns import to_table
from empathy.records import Verdict
from empathy.stats.bootstrap import bootstrap_means, cluster_sums, percentile_interval
from empathy.stats.clustered import clustered_mean, clustered_ratio, clustered_share, label_codes, wilson
from empathy.stats.contrasts import holm, sign_flip_p
from empathy.stats.wins import calls_of, prompt_scores, summary


def verdict(
    dialogue: str, first: str, overall: str | None, *, group: str = "", mode: str = "robust", **more: object
) -> Verdict:
    outcome = {
        "overall": overall,
        "cognitive": overall,
        "affective": overall,
        "compassionate": "tie" if overall else None,
    }
    status = "ok" if overall else "unreadable"
    fields = {"judge": "j", "repeat": 0, "words_a": 12, "words_b": 10, **outcome, **more}
    return Verdict(
        f"{dialogue}{first}", dialogue, group=group or dialogue, mode=mode, first=first, status=status, **fields
    )


def table(*verdicts: Verdict) -> pa.Table:
    return to_table(verdicts, Verdict)


def test_clustered_mean_by_hand() -> None:
    # y = 1 1 0 | 0 .5 | 1, W = 3.5/6 = 7/12. Residual sums: 2 - 21/12 = 3/12, .5 - 14/12 = -8/12, 1 - 7/12 = 5/12.
    # sum of squares = (9 + 64 + 25)/144 = 98/144; C/(C-1) = 1.5; SE = sqrt(147/144)/6 = .168393...
    found = clustered_mean(np.array([1, 1, 0, 0, 0.5, 1.0]), label_codes(["x", "x", "x", "y", "y", "z"]))
    assert found.value == pytest.approx(7 / 12)
    assert found.se == pytest.approx(np.sqrt(147) / 12 / 6)
    assert found.high - found.value == pytest.approx(4.302653 * np.sqrt(147) / 72, rel=1e-6)  # t(.975, 2)
    assert (found.n, found.clusters) == (6, 3)


def test_clustered_mean_with_rows_as_clusters_is_the_ordinary_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert clustered_mean(values, np.arange(50)).se == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_ratio_is_per_token_not_per_reply() -> None:
    found = clustered_ratio(np.array([30.0, 2.0]), np.array([5.0, 1.0]), np.array([0, 1]))
    # R = 32/6 (a mean of ratios is 4); residuals 20/6, -20/6; SE = sqrt(2 * 2 * (20/6)^2) / 6
    assert found.value == pytest.approx(32 / 6)
    assert found.se == pytest.approx(2 * (20 / 6) / 6)


def test_nothing_known_stays_unknown() -> None:
    assert clustered_mean(np.array([np.nan]), np.array([0])).value is None
    one = clustered_mean(np.array([1.0, 0.0]), np.array([0, 0]))
    assert one.value == 0.5
    assert one.low is None
    assert one.se is None


def test_share_at_the_end_uses_wilson_on_clusters() -> None:
    found = clustered_share(np.ones(20), label_codes(list(range(10)) * 2))
    # p = 1, n = 10 clusters, t(.975, 9) = 2.262157: low = 1 / (1 + t^2/n)
    assert found.low == pytest.approx(1 / (1 + 2.262157**2 / 10), rel=1e-6)
    assert found.high == 1.0


def test_wilson_textbook_value() -> None:
    # 1 of 10, z = 1.96 (Newcombe 1998 lists 0.0179 to 0.4042)
    assert wilson(0.1, 10, 1.959964) == pytest.approx((0.0179, 0.4042), abs=5e-5)


def test_share_in_the_middle_is_the_t_interval() -> None:
    values, clusters = np.array([1, 0, 1, 0, 1, 1, 0, 0.0] * 5), np.arange(40)
    assert clustered_share(values, clusters) == clustered_mean(values, clusters)


def test_summary_by_hand() -> None:
    # d1: won in both orders. d2: the first shown wins both times. d3: tie, unreadable. d4: lost, lost.
    found = summary(
        calls_of(
            table(
                *(verdict("d1", f, "a") for f in "ab"),
                *(verdict("d2", f, f) for f in "ab"),
                verdict("d3", "a", "tie"),
                verdict("d3", "b", None),
                *(verdict("d4", f, "b", words_a=4) for f in "ab"),
            )
        )
    )
    value = {name: x.value for name, x in found.items()}
    assert value["win_rate"] == pytest.approx(3.5 / 7)  # 1 1 | 1 0 | .5 - | 0 0
    assert value["win_rate_missing_lost"] == pytest.approx(3.5 / 8)
    assert value["win_rate_missing_won"] == pytest.approx(4.5 / 8)
    assert value["missing_share"] == pytest.approx(1 / 8)
    assert value["tie_share"] == pytest.approx(1 / 7)
    assert value["strict_win_rate"] == pytest.approx(1 / 3)  # d1 of the three pairs read in both orders
    assert value["order_consistency"] == pytest.approx(2 / 3)  # d1, d4
    # shown first won: d1 1 0, d2 1 1, d3 .5, d4 0 1: 4.5 of 7
    assert value["first_position_bias"] == pytest.approx(4.5 / 7 - 0.5)
    assert value["win_rate_cognitive"] == pytest.approx(0.5)
    assert value["win_rate_compassionate"] == pytest.approx(0.5)
    assert value["words_difference"] == pytest.approx((6 * 2 + 2 * -6) / 8)
    assert found["win_rate"].clusters == 4


def test_paper_mode_counts_unreadable_as_lost_and_claims_nothing_about_order() -> None:
    rows = [verdict("d1", "b", "a"), verdict("d2", "b", None), verdict("d3", "b", "a"), verdict("d4", "b", "b")]
    found = summary(calls_of(to_table([_paper(v) for v in rows], Verdict)))
    assert found["win_rate"].value == 0.5
    assert found["missing_share"].value == 0.25
    assert not {"order_consistency", "first_position_bias", "strict_win_rate", "win_rate_cognitive"} & set(found)


def _paper(v: Verdict) -> Verdict:
    return Verdict(v.id, v.dialogue_id, v.group, "j", "paper", v.first, 0, v.status, v.overall)


def test_verdicts_of_two_judges_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="several judges"):
        calls_of(table(verdict("d1", "a", "a"), verdict("d1", "a", "a", judge="other")))


def test_prompt_scores_average_orders() -> None:
    rows = [verdict("d1", "a", "a"), verdict("d1", "b", "tie"), verdict("d2", "a", "b"), verdict("d2", "b", None)]
    assert prompt_scores(calls_of(table(*rows, verdict("d3", "a", None)))) == {"d1": 0.75, "d2": 0.0}


def test_bootstrap_equals_drawing_clusters_one_by_one() -> None:
    rng = np.random.default_rng(3)
    values, clusters = rng.random(60), np.repeat(np.arange(12), 5)
    sums, counts = cluster_sums([values, 1 - values], [clusters, clusters], 12)
    means = bootstrap_means(sums, counts, 4000, seed=7)
    draws = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=4000)
    slow = [np.concatenate([np.repeat(values[clusters == c], n) for c, n in enumerate(d)]).mean() for d in draws[:50]]
    assert means[:50, 0] == pytest.approx(slow)
    assert means.sum(1) == pytest.approx(np.ones(4000))  # arms share their draws: y and 1 - y always add up
    assert means[:, 0].std() == pytest.approx(clustered_mean(values, clusters).se, rel=0.1)


def test_bootstrap_covers_the_truth_where_rows_as_units_do_not() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        of_cluster = rng.normal(size=30)
        values = np.repeat(of_cluster, 4) + 0.1 * rng.normal(size=120)
        sums, counts = cluster_sums([values], [np.repeat(np.arange(30), 4)], 30)
        low, high = percentile_interval(bootstrap_means(sums, counts, 400, seed=trial)[:, 0])
        hits += low <= 0 <= high
    assert 0.88 <= hits / 300 <= 0.98  # nominal .95, 30 clusters; rows as units would cover about .67


def test_bootstrap_of_504_000_verdicts() -> None:
    """42 arms of 12,000 verdicts in 200 clusters: the draws lie about each arm's mean as wide as theory says."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(200), 60)
    arms = [rng.random(12_000) for _ in range(42)]
    sums, counts = cluster_sums(arms, [clusters] * 42, 200)
    means = bootstrap_means(sums, counts, 10_000, seed=0)
    assert means.shape == (10_000, 42)
    assert means.mean(axis=0) == pytest.approx([arm.mean() for arm in arms], abs=2e-4)
    spread = [arm.reshape(200, 60).mean(axis=1).std() / 200**0.5 for arm in arms]
    assert means.std(axis=0) == pytest.approx(spread, rel=0.05)


def test_an_arm_without_rows_in_a_draw_is_unknown() -> None:
    sums, counts = cluster_sums([np.array([1.0]), np.array([1.0, 0.0])], [np.array([0]), np.array([0, 1])], 2)
    means = bootstrap_means(sums, counts, 100, seed=0)
    assert percentile_interval(means[:, 0]) is None
    assert percentile_interval(means[:, 1]) is not None


def test_sign_flip_counts_all_patterns_of_few_clusters() -> None:
    # cluster sums 3, 1, 2: |±3 ±1 ±2| >= 6 in 2 of 8 patterns
    assert sign_flip_p(np.array([1.0, 2.0, 1.0, 2.0]), label_codes(["x", "x", "y", "z"])) == 0.25


def test_sign_flips_that_are_kept_give_the_same_p() -> None:
    differences = np.random.default_rng(4).normal(0.2, 1, 40)
    other = np.random.default_rng(5).normal(0, 1, 20)
    clusters = np.arange(40) // 2
    rng = np.random.default_rng(7)
    signs = 2.0 * rng.integers(0, 2, size=(1000, 20), dtype=np.int8) - 1
    sums = differences.reshape(20, 2).sum(axis=1)
    expected = (1 + np.sum(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9)) / 1001
    assert sign_flip_p(differences, clusters, 1000, seed=7) == expected
    sign_flip_p(other, np.arange(20), 1000, seed=8)  # another one in between
    assert sign_flip_p(differences, clusters, 1000, seed=7) == expected


def test_sign_flip_sampled_agrees_with_exact() -> None:
    sums = np.random.default_rng(5).normal(0.3, 1, size=16)
    exact = np.mean([abs(np.dot(s, sums)) >= abs(sums.sum()) - 1e-9 for s in itertools.product((-1, 1), repeat=16)])
    assert sign_flip_p(sums, np.arange(16), permutations=20_000) == pytest.approx(exact, abs=0.012)


def test_holm_by_hand() -> None:
    # sorted .01*4 = .04, .02*3 = .06, .03*2 = .06, .04*1 -> .06 (never below the one before)
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
