"""What trials occupy, and where everything is: what a spec may say of machines."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.drivers.ray.cluster import Node, num_trials_that_fit, ray_resources
from orchestrator.errors import SpecError
from orchestrator.redaction import redact
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.resources import Cluster, ResourceOverride, Resources, TrialResources

NANO = "vit_nano_patch4_32.mae"


def test_a_backbone_of_its_own_differs_in_what_it_says_and_in_nothing_else() -> None:
    own = {"large": ResourceOverride(gpus=1), "small": ResourceOverride(cpus=1, gpus="auto")}
    resources = Resources(cpus=4, gpus=0.5, accelerator_type="A100", backbones=own)
    assert resources.for_backbone("any") == TrialResources(cpus=4, gpus=0.5, accelerator_type="A100")
    assert resources.for_backbone("large") == TrialResources(cpus=4, gpus=1, accelerator_type="A100")
    assert resources.for_backbone("small") == TrialResources(cpus=1, gpus="auto", accelerator_type="A100")


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (
            {"resources": {"gpus": "x"}},
            "resources.gpus: must be a share of a GPU such as 0.25, a whole number of GPUs, or auto; got 'x'.",
        ),
        (
            {"resources": {"gpus": -1}},
            "resources.gpus: must be a share of a GPU such as 0.25, a whole number of GPUs, or auto; got -1.",
        ),
        (
            {"resources": {"backbones": {"vit": {}}}},
            f"resources.backbones.vit: 'vit' is not a backbone of this spec; there are {NANO}.",
        ),
        (
            {"resources": {"backbones": {NANO: {"gpu": 1}}}},
            f"resources.backbones.{NANO}.gpu: 'gpu' is not a key here; did you mean 'gpus'?",
        ),
        ({"cluster": {"adress": "auto"}}, "cluster.adress: 'adress' is not a key here; did you mean 'address'?"),
        ({"cluster": {"workers": 0}}, "cluster.workers: must be at least 1, got 0."),
    ],
)
def test_what_is_wrong_about_machines_is_told_with_its_place(
    raw_spec: dict[str, Any], part: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError) as told:
        parse_spec(raw_spec | part, "a test")
    assert told.value.problems == [sentence]


@pytest.mark.parametrize(
    ("name", "address", "variable"),
    [
        ("studies", "postgresql+psycopg://ada:lovelace@db/sptune", "PGPASSWORD or ~/.pgpass"),
        ("mlflow", "https://ada:lovelace@mlflow.lab", "MLFLOW_TRACKING_USERNAME"),
        ("home", "s3://AKIA:lovelace@bucket/home", "AWS_ACCESS_KEY_ID"),
        ("data", "s3://bucket/home?secret_key=lovelace", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_secret_in_a_spec_is_refused_unrepeated_with_where_it_belongs(
    raw_spec: dict[str, Any], name: str, address: str, variable: str
) -> None:
    with pytest.raises(SpecError) as told:
        parse_spec(raw_spec | {"cluster": {name: address}}, "a test")
    assert "lovelace" not in str(told.value)
    assert "holds a secret" in str(told.value)
    assert variable in str(told.value)


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("postgresql+psycopg://ada@db:5432/x", "postgresql+psycopg://ada@db:5432/x"),
        ("to postgresql://ada:p@ss:word@db/x failed", "to postgresql://ada:***@db/x failed"),
        ("https://u:p@one/ and https://u:p@two/", "https://u:***@one/ and https://u:***@two/"),
        ("s3://b/f?region=eu&session_token=abc", "s3://b/f?region=eu&session_token=***"),
        ("password=hunter2 user=ada", "password=*** user=ada"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_a_text_is_shown_without_its_secrets(text: str, without: str) -> None:
    assert redact(text) == without


def test_addresses_are_all_that_a_cluster_needs_to_be_told() -> None:
    assert {*Cluster.model_fields} == {"home", "studies", "mlflow", "data", "weights", "address", "workers"}


NODES = [
    Node("head", "0", {"CPU": 8.0}),
    Node("a", "1", {"CPU": 16.0, "GPU": 2.0, "accelerator_type:A100": 1.0}),
    Node("b", "2", {"CPU": 4.0, "GPU": 8.0, "accelerator_type:H100": 1.0}),
]


@pytest.mark.parametrize(
    ("share", "count"),
    [
        (TrialResources(cpus=1), 28),
        (TrialResources(cpus=3), 2 + 5 + 1),
        (TrialResources(cpus=17), 0),
        (TrialResources(cpus=1, gpus=1), 2 + 4),
        (TrialResources(cpus=1, gpus=0.25), 8 + 4),
        (TrialResources(cpus=1, gpus=1 / 3), 6 + 4),
        (TrialResources(cpus=1, gpus=9), 0),
        (TrialResources(cpus=1, gpus="auto", accelerator_type="H100"), 4),
        (TrialResources(cpus=1, gpus=1, accelerator_type="B200"), 0),
    ],
)
def test_a_trial_fits_on_one_node_or_not_at_all(share: TrialResources, count: int) -> None:
    assert num_trials_that_fit(share, NODES) == count


def test_ray_is_asked_for_what_a_trial_occupies() -> None:
    assert ray_resources(TrialResources(cpus=2)) == {"CPU": 2.0}
    assert ray_resources(TrialResources(cpus=2, gpus=0.25, accelerator_type="A100")) == {
        "CPU": 2.0,
        "GPU": 0.25,
        "accelerator_type:A100": 0.001,
    }
