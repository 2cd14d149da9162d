"""Scores against plain counting, predictions out of their file, and what NMI is and is not moved by."""

from __future__ import annotations

import io
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from trainer.data.split import Split, load_split
from trainer.model.backbone import Backbone
from trainer.prompt_init.strategies import uniform_prompt
from trainer.training.metrics import normalized_mutual_information, predictions, scores


def random_scores(num_inputs: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits in which each input's classes all differ, and labels of every second class only."""
    generator = torch.Generator().manual_seed(seed)
    logits_NK = torch.stack([torch.randperm(num_classes, generator=generator).float() for _ in range(num_inputs)])
    labels_N = torch.randint(0, (num_classes + 1) // 2, (num_inputs,), generator=generator) * 2
    # Half of the inputs are on the right side, so that each score has something to count.
    rows = torch.arange(0, num_inputs, 2)
    logits_NK[rows, labels_N[rows]] += 0.7 * num_classes + 0.26
    return logits_NK, labels_N


def split_of(labels_N: Tensor, keys: list[str]) -> Split:
    return Split(
        images_R=torch.zeros(len(keys), 3, 1, 1, dtype=torch.uint8),
        rows_N=torch.arange(len(keys)),
        labels_N=labels_N,
        keys=tuple(keys),
        view="fixed",
        fingerprint="",
    )


@pytest.mark.parametrize("num_classes", [2, 5, 6, 7, 102])
@pytest.mark.parametrize("num_inputs", [1, 2, 7, 100])
def test_scores_are_shares_of_what_is_counted_one_by_one(num_inputs: int, num_classes: int) -> None:
    logits_NK, labels_N = random_scores(num_inputs, num_classes)
    best = np.argsort(-logits_NK.numpy(), axis=1).tolist()
    labels = labels_N.tolist()
    right = [order[0] == label for order, label in zip(best, labels, strict=True)]
    expected = {"accuracy": sum(right) / num_inputs}
    if num_classes > 5:
        expected["accuracy_top5"] = sum(b in o[:5] for o, b in zip(best, labels, strict=True)) / num_inputs
    of_class = [[r for r, label in zip(right, labels, strict=True) if label == k] for k in range(num_classes)]
    occurring = [sum(told) / len(told) for told in of_class if told]
    expected["accuracy_mean_class"] = pytest.approx(sum(occurring) / len(occurring), abs=1e-12)
    assert scores(logits_NK, labels_N) == expected
    assert all(type(value) is float for value in scores(logits_NK, labels_N).values())


def test_a_class_that_does_not_occur_counts_for_nothing_and_a_rare_one_as_much_as_any() -> None:
    labels_N = torch.tensor([0] * 98 + [3, 3])
    always_0 = torch.eye(6)[[0] * 100]
    assert scores(always_0, labels_N) == {"accuracy": 0.98, "accuracy_top5": 1.0, "accuracy_mean_class": 0.5}
    # Class 5 is the answer to everything and the label of nothing.
    assert scores(torch.eye(6)[[5] * 100], labels_N)["accuracy_mean_class"] == 0
    assert scores(torch.eye(6)[labels_N], labels_N)["accuracy_mean_class"] == 1


def test_the_right_class_is_among_five_where_fewer_than_five_are_above_it() -> None:
    logits_NK = torch.arange(7.0).expand(7, 7)
    assert scores(logits_NK, torch.arange(7)) == pytest.approx(
        {"accuracy": 1 / 7, "accuracy_top5": 5 / 7, "accuracy_mean_class": 1 / 7}
    )
    assert scores(logits_NK[:, :6], torch.tensor([0] * 7))["accuracy_top5"] == 0
    for few in (2, 5):
        assert "accuracy_top5" not in scores(logits_NK[:, :few], torch.tensor([0] * 7))


@pytest.mark.parametrize("num_classes", [2, 6, 20, 102])
def test_of_equal_logits_the_first_is_the_answer(num_classes: int) -> None:
    labels_N = torch.arange(num_classes)
    assert scores(torch.zeros(num_classes, num_classes), labels_N)["accuracy"] == 1 / num_classes
    generator = torch.Generator().manual_seed(0)
    tied_NK = torch.randint(0, 3, (100, num_classes), generator=generator).float()  # as bf16 makes them
    first = [row.index(max(row)) for row in tied_NK.tolist()]
    assert scores(tied_NK, torch.tensor(first))["accuracy"] == 1


@pytest.mark.parametrize("num_classes", [6, 20, 100, 1000])
def test_of_equal_logits_the_five_first_are_the_five_best_so_the_answer_is_among_them(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for tied_NK in (
        torch.zeros(num_classes, num_classes),
        torch.randint(0, 3, (100, num_classes), generator=generator).float(),  # as bf16 makes them
    ):
        labels_N = torch.arange(len(tied_NK)) % num_classes
        pairs = zip(tied_NK.tolist(), labels_N.tolist(), strict=True)
        before = [sum(value > row[k] or (value == row[k] and i < k) for i, value in enumerate(row)) for row, k in pairs]
        found = scores(tied_NK, labels_N)
        assert found["accuracy"] == sum(rank < 1 for rank in before) / len(before)
        assert found["accuracy_top5"] == sum(rank < 5 for rank in before) / len(before)


def test_predictions_come_out_of_their_file_as_they_went_in() -> None:
    logits_NK = torch.tensor([[0.0, 1.0, -1.0], [50.0, 0.0, 0.0], [0.0, 0.0, 1e4], [-3e38, -3e38, -3e38]])
    keys = ["plain", "", "a/b é.png", "plain"]
    rows = pq.read_table(io.BytesIO(predictions(logits_NK, split_of(torch.tensor([1, 2, 2, 1]), keys)))).to_pylist()
    e, sure = math.e, 1 / (1 + 2 * math.exp(-50))
    assert rows == [
        {
            "key": "plain",
            "label": 1,
            "prediction": 1,
            "correct": True,
            "confidence": pytest.approx(e / (1 + e + 1 / e)),
        },
        {"key": "", "label": 2, "prediction": 0, "correct": False, "confidence": pytest.approx(sure, abs=1e-15)},
        {"key": "a/b é.png", "label": 2, "prediction": 2, "correct": True, "confidence": 1.0},
        {"key": "plain", "label": 1, "prediction": 0, "correct": False, "confidence": pytest.approx(1 / 3)},
    ]


@pytest.mark.parametrize("num_classes", [2, 6, 102])
def test_predictions_agree_with_the_scores(num_classes: int) -> None:
    logits_NK, labels_N = random_scores(50, num_classes)
    split = split_of(labels_N, [str(i) for i in range(50)])
    table = pq.read_table(io.BytesIO(predictions(logits_NK, split))).to_pydict()
    assert list(table) == ["key", "label", "prediction", "correct", "confidence"]
    assert (table["key"], table["label"]) == (list(split.keys), labels_N.tolist())
    assert sum(table["correct"]) / 50 == scores(logits_NK, labels_N)["accuracy"]
    for row, prediction, confidence in zip(logits_NK.tolist(), table["prediction"], table["confidence"], strict=True):
        assert row[prediction] == max(row)
        assert confidence == pytest.approx(1 / sum(math.exp(value - max(row)) for value in row), abs=1e-12)


def test_predictions_take_the_first_of_equals_as_the_scores_do() -> None:
    # Two logits so near to each other that their softmax is the same, though one is larger.
    logits_NK = torch.tensor([[1e-20, 2e-20, 0.0], [0.0, 0.0, 0.0], [5.0, 7.0, 7.0]])
    labels_N = torch.tensor([1, 0, 1])
    table = pq.read_table(io.BytesIO(predictions(logits_NK, split_of(labels_N, ["a", "b", "c"])))).to_pydict()
    assert (table["prediction"], table["correct"]) == ([1, 0, 1], [True] * 3)
    assert scores(logits_NK, labels_N)["accuracy"] == 1


WIDTHS = pytest.mark.parametrize("width", [96, 97, 100, 192, 384, 768, 1280])
nmi = normalized_mutual_information


def vectors(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + width)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


@WIDTHS
def test_a_vector_tells_all_of_itself(width: int) -> None:
    for row in vectors(5, width):
        assert nmi(row[None], row[None]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("width", [96, 768])
def test_of_independent_vectors_it_is_about_3_percent(width: int) -> None:
    own_PD, other_TD = vectors(40, width), vectors(50, width, seed=1)
    assert 0.025 < nmi(own_PD, other_TD) < 0.04  # (S - 1)^2 / (2 D log S), S the bins: 3.4 and 3.2 %
    assert max(nmi(p[None], t[None]) for p in own_PD[:10] for t in other_TD[:10]) < 0.15


@WIDTHS
def test_it_lies_between_0_and_1_and_does_not_depend_on_who_is_asked(width: int) -> None:
    own_PD, other_TD = vectors(4, width), vectors(3, width, seed=1)
    for noise in (0.0, 0.1, 1.0, 10.0):
        near_TD = own_PD[:3] + noise * other_TD
        assert nmi(own_PD, near_TD) == pytest.approx(nmi(near_TD, own_PD), abs=1e-12)
        pairs = [nmi(p[None], t[None]) for p in own_PD for t in near_TD]
        assert all(0 <= value <= 1 + 1e-12 for value in pairs)
        assert nmi(own_PD, near_TD) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12), "the mean over all pairs"


@WIDTHS
def test_the_more_noise_the_less_is_known(width: int) -> None:
    own_PD, other_PD = vectors(6, width), vectors(6, width, seed=1)
    known = [
        sum(nmi(p[None], (p + noise * o)[None]) for p, o in zip(own_PD, other_PD, strict=True)) / 6
        for noise in (0.0, 0.1, 0.3, 1.0, 3.0, 100.0)
    ]
    assert known == sorted(known, reverse=True) and known[0] > 0.999 and known[1] > 0.5 and known[-1] < 0.06


@WIDTHS
def test_monotone_maps_of_either_vector_change_nothing(width: int) -> None:
    own_PD = vectors(3, width)
    other_TD = own_PD + vectors(3, width, seed=1)
    known = nmi(own_PD, other_TD)
    maps = (lambda v: 1e-3 * v + 7, lambda v: v**3, torch.exp, lambda v: v.float())
    for rising in maps:
        assert nmi(rising(own_PD), other_TD) == nmi(own_PD, rising(other_TD)) == known
    if width in (96, 192, 384, 768):  # bins of exactly equal count look the same from above
        assert nmi(-own_PD, other_TD) == pytest.approx(known, abs=1e-12)


def test_it_knows_a_connection_that_is_not_linear() -> None:
    own_PD = vectors(3, 768)
    square_TD = (own_PD**2)[:1]
    assert abs(float(torch.corrcoef(torch.stack([own_PD[0], square_TD[0]]))[0, 1])) < 0.15
    assert nmi(own_PD[:1], square_TD) > 0.5 and nmi(own_PD[1:], square_TD) < 0.06


@pytest.mark.parametrize(("width", "bins"), [(96, 4), (384, 8), (768, 12)])
def test_it_is_scikit_learn_s_normalized_by_the_smaller_entropy(width: int, bins: int) -> None:
    def binned(values_D: Tensor) -> list[int]:
        """The bin of each coordinate; the bins hold the same number of them."""
        bin_of = {int(place): b for b, places in enumerate(np.array_split(np.argsort(values_D.numpy()), bins))
                  for place in places}  # fmt: skip
        return [bin_of[place] for place in range(width)]

    for noise in (0.0, 0.3, 1.0, 10.0):
        own_D = vectors(1, width)[0]
        other_D = own_D + noise * vectors(1, width, seed=1)[0]
        expected = normalized_mutual_info_score(binned(own_D), binned(other_D), average_method="min")
        assert nmi(own_D[None], other_D[None]) == pytest.approx(expected, abs=1e-9)


def with_ties(values_RD: Tensor, share: float) -> Tensor:
    """The same vectors, with that share of the coordinates, the smallest ones, equal in each."""
    return values_RD.maximum(values_RD.quantile(share, dim=1, keepdim=True))


@pytest.mark.parametrize(("width", "half", "three_quarters"), [(96, 0.13, 0.39), (768, 0.18, 0.46)])
def test_ties_in_both_vectors_raise_it_as_much_as_its_docstring_says(
    width: int, half: float, three_quarters: float
) -> None:
    own_PD, other_TD = vectors(40, width), vectors(50, width, seed=1)
    independent = nmi(own_PD, other_TD)
    for share, expected in ((0.5, half), (0.75, three_quarters)):
        assert nmi(with_ties(own_PD, share), with_ties(other_TD, share)) == pytest.approx(expected, abs=0.01)
        assert nmi(with_ties(own_PD, share), other_TD) == pytest.approx(independent, abs=0.005), "ties on one side"


@pytest.mark.parametrize(("width", "equal", "fourfold"), [(96, 0.11, 0.28), (768, 0.08, 0.21)])
def test_a_common_channel_offset_raises_it_as_much_as_its_docstring_says(
    width: int, equal: float, fourfold: float
) -> None:
    own_PD, other_TD = vectors(40, width), vectors(50, width, seed=1)
    # A single draw of the offset moves the result by a point or two at D = 96: take the mean of ten.
    offsets = vectors(10, width, seed=2)
    for scale, expected in ((1.0, equal), (2.0, fourfold)):
        values = [nmi(own_PD + scale * offset_D, other_TD + scale * offset_D) for offset_D in offsets]
        assert sum(values) / len(values) == pytest.approx(expected, abs=0.015)
        one_sided = [nmi(own_PD + scale * offset_D, other_TD) for offset_D in offsets]
        assert sum(one_sided) / len(one_sided) < 0.04


def test_patch_tokens_are_close_to_any_other_patch_token_and_uniform_prompts_to_none(
    backbone: Backbone, data_root: str
) -> None:
    images = load_split(data_root, "demo/digits", "train", 0.05, 32).all_images()
    generator = torch.Generator().manual_seed(0)
    uniform_LPD = uniform_prompt(backbone, num_layers=5, prompt_length=10, generator=generator)
    of_tokens, of_uniform = [], []
    for uniform_PD, tokens_BND in zip(uniform_LPD, backbone.patch_tokens(images), strict=True):
        tokens_TD = tokens_BND.flatten(0, 1)
        drawn_TD = tokens_TD[torch.randperm(len(tokens_TD), generator=generator)[:266]]
        of_tokens.append(nmi(drawn_TD[:10], drawn_TD[10:]))
        of_uniform.append(nmi(uniform_PD, drawn_TD[10:]))
    assert min(of_tokens) == pytest.approx(0.08, abs=0.015) and max(of_tokens) == pytest.approx(0.22, abs=0.03)
    assert all(0.025 < value < 0.045 for value in of_uniform)
