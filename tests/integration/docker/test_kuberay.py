"""docker/kuberay.yaml, by Kubernetes' schemas and KubeRay's fields."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import ray
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from orchestrator.drivers.ray.worker import TrialWorker
from orchestrator.spec.loader import parse_spec
from tests.integration.docker.files import BIN, DOCKER, documents

RAW = documents("kuberay.yaml")
[JOB] = [document for document in RAW if document["kind"] == "RayJob"]
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, [WORKERS] = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
[WORKER] = WORKERS["template"]["spec"]["containers"]
IMAGE = WORKER["image"]
PRE_STOP = WORKER["lifecycle"]["preStop"]["exec"]["command"]
TEMPLATES = {
    "submitter": JOB["spec"]["submitterPodTemplate"],
    "head": HEAD["template"],
    "worker": WORKERS["template"],
}


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """A schema: these fields and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*required],
        "additionalProperties": False,
    }


def one_of(*values: str) -> dict[str, Any]:
    """A schema: one of these words."""
    return {"enum": [*values]}


TEXT, WHOLE, TRUTH, OBJECT = (
    {"type": "string"},
    {"type": "integer", "minimum": 0},
    {"type": "boolean"},
    {"type": "object"},
)
TEXTS = {"type": "object", "additionalProperties": TEXT}
AUTOSCALER = fields(
    resources=OBJECT,
    image=TEXT,
    imagePullPolicy=TEXT,
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
    securityContext=OBJECT,
    idleTimeoutSeconds=WHOLE,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
)
WORKER_GROUP = fields(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    suspend=TRUTH,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    idleTimeoutSeconds=WHOLE,
    numOfHosts=WHOLE,
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    template=OBJECT,
    scaleStrategy=OBJECT,
)
RAY_CLUSTER = fields(
    ("headGroupSpec", "workerGroupSpecs", "rayVersion"),
    suspend=TRUTH,
    managedBy=TEXT,
    authOptions=fields(mode=one_of("disabled", "token")),
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=TRUTH,
    gcsFaultToleranceOptions=OBJECT,
    headGroupSpec=fields(
        ("rayStartParams", "template"),
        template=OBJECT,
        headService=OBJECT,
        enableIngress=TRUTH,
        rayStartParams=TEXTS,
        resources=TEXTS,
        labels=TEXTS,
        serviceType=TEXT,
    ),
    rayVersion=TEXT,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
RAY_JOB = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=fields(("name",), name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=fields(
        ("entrypoint", "rayClusterSpec"),
        activeDeadlineSeconds=WHOLE,
        backoffLimit=WHOLE,
        rayClusterSpec=RAY_CLUSTER,
        submitterPodTemplate=OBJECT,
        metadata=TEXTS,
        clusterSelector=TEXTS,
        submitterConfig=fields(backoffLimit=WHOLE),
        managedBy=TEXT,
        deletionStrategy=OBJECT,
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        jobId=TEXT,
        submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        entrypointResources=TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        ttlSecondsAfterFinished=WHOLE,
        shutdownAfterJobFinishes=TRUTH,
        suspend=TRUTH,
    ),
)
"""What KubeRay documents of its v1 API."""


def problems(job: Any) -> list[str]:
    """What KubeRay would not know."""
    return [error.message for error in Draft202012Validator(RAY_JOB).iter_errors(job)]


def test_kuberay_knows_every_field() -> None:
    assert problems(JOB) == []


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (("spec",), "backOffLimit", 2),
        (("spec", "rayClusterSpec"), "enableInTreeAutoScaling", True),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), "num-cpus", 0),
        (("spec", "rayClusterSpec", "autoscalerOptions"), "upscalingMode", "Fast"),
        ((), "apiVersion", "ray.io/v1alpha1"),
    ],
)
def test_a_field_that_kuberay_does_not_know_would_be_found(place: tuple[str, ...], name: str, value: object) -> None:
    spoilt = part = copy.deepcopy(JOB)
    for key in place:
        part = part[key]
    part[name] = value
    assert len(problems(spoilt)) == 1


def pod(template: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "of-a-template"}, **template}


@pytest.mark.parametrize("name", TEMPLATES)
def test_kubernetes_knows_every_field_of_a_pod(name: str) -> None:
    kubernetes_validate.validate(pod(TEMPLATES[name]), kubernetes_validate.latest_version(), strict=True)
    spoilt = copy.deepcopy(pod(TEMPLATES[name]))
    spoilt["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_knows_every_field_of_what_is_beside_the_job() -> None:
    others = [document for document in RAW if document is not JOB]
    assert [document["kind"] for document in others] == ["ConfigMap", "ConfigMap"]
    for document in others:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_has_rights_that_it_does_not_need(name: str) -> None:
    spec = TEMPLATES[name]["spec"]
    [user] = re.findall(r"^USER (\d+)$", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == int(user)
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"] and container["resources"]["limits"]


def secrets_of(template: Any) -> set[str]:
    [container] = template["spec"]["containers"]
    return {source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source}


def test_secrets_are_named_and_not_told_and_workers_have_the_buckets_alone() -> None:
    assert {name: secrets_of(template) for name, template in TEMPLATES.items()} == {
        "submitter": set(),
        "head": {"sptune-bucket", "sptune-driver"},
        "worker": {"sptune-bucket"},
    }
    assert not [document for document in RAW if document["kind"] == "Secret"]
    text = (DOCKER / "kuberay.yaml").read_text()
    made = dict(re.findall(r"^#   kubectl create secret generic (\S+) (.+)$", text, flags=re.MULTILINE))
    assert {*made} == {"sptune-bucket", "sptune-driver"}
    assert all(re.fullmatch(r"(--from-literal=\w+=\.\.\. ?)+", literals) for literals in made.values())


def test_the_cluster_grows_to_as_many_workers_as_the_spec_of_its_sweep_wants_and_they_hold_its_trials() -> None:
    [raw] = [document["data"]["spec.yaml"] for document in RAW if "spec.yaml" in document.get("data", {})]
    spec = parse_spec(yaml.safe_load(raw), "a config map")
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert spec.cluster.workers == WORKERS["maxReplicas"] and WORKERS["minReplicas"] == 0
    share = spec.resources.for_backbone("vit_base_patch16_224.mae")
    assert float(WORKER["resources"]["limits"]["nvidia.com/gpu"]) == share.initial_gpus
    assert int(WORKER["resources"]["limits"]["cpu"]) == share.cpus


def test_the_overlay_of_the_document_changes_its_values_and_nothing_else(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl here")
    (text,) = re.findall(
        r"^```yaml\n(resources: .*?)^```", (DOCKER / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay/kustomization.yaml").write_text(text)
    (tmp_path / "docker").mkdir()
    for name in ("kustomization.yaml", "kuberay.yaml"):
        shutil.copy(DOCKER / name, tmp_path / "docker")
    command = ["kubectl", "kustomize", str(tmp_path / "overlay")]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    overlay = yaml.safe_load(text)
    [image] = overlay["images"]
    data = {patch["metadata"]["name"]: patch["data"] for patch in map(yaml.safe_load, patches(overlay))}
    expected = copy.deepcopy(RAW)
    for document in expected:
        document["metadata"]["namespace"] = overlay["namespace"]
        if document["kind"] == "ConfigMap":
            # Kustomize drops the newline at the end of a patch.
            document["data"] |= {key: value.rstrip() for key, value in data[document["metadata"]["name"]].items()}
    named = yaml.safe_dump_all(expected).replace(f"image: {IMAGE}", f"image: {image['newName']}:{image['newTag']}")
    in_order = sorted(yaml.safe_load_all(named), key=identity)
    assert sorted(yaml.safe_load_all(built), key=identity) == in_order
    assert parse_spec(yaml.safe_load(data["sptune-spec"]["spec.yaml"]), "the document").name == "flowers"


def patches(overlay: dict[str, Any]) -> list[str]:
    """The texts of an overlay's patches."""
    return [each["patch"] for each in overlay["patches"]]


def identity(document: dict[str, Any]) -> tuple[str, str]:
    """What tells an object of Kubernetes from the others."""
    return document["kind"], document["metadata"]["name"]


def test_the_entry_point_finds_its_spec_where_the_head_mounts_it() -> None:
    program, command, path = JOB["spec"]["entrypoint"].split()
    [container] = HEAD["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in HEAD["template"]["spec"]["volumes"]}
    assert (program, command, path) == ("sptune", "launch", f"{mounts['spec']}/spec.yaml")
    assert volumes["spec"]["configMap"]["name"] in {document["metadata"]["name"] for document in RAW}


def test_ray_is_of_the_locks_version() -> None:
    assert CLUSTER["rayVersion"] == ray.__version__


@pytest.mark.parametrize("script", [JOB["spec"]["entrypoint"], PRE_STOP[2]])
def test_shellcheck_finds_nothing(script: str) -> None:
    done = subprocess.run(
        [BIN / "shellcheck", "--shell=bash", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_worker_that_has_to_go_speaks_to_trials_by_the_name_that_they_have_and_has_the_time_that_it_takes() -> None:
    shell, option, script = PRE_STOP
    assert (shell, option) == ("bash", "-c")
    assert {*re.findall(r"'(\^ray::\w+)'", script)} == {f"^ray::{TrialWorker.__name__}"}
    [seconds] = re.findall(r"\{1\.\.(\d+)\}", script)
    assert int(seconds) + 30 <= WORKERS["template"]["spec"]["terminationGracePeriodSeconds"]
