"""The cluster files are valid: against KubeRay's schemas where they are at hand, and against our own names always."""

import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

INFRA = Path(__file__).parents[3] / "infra"
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))
SCHEMA_FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayService": "ray.io_rayservices.yaml"}


def schema_for(manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    text = (folder / SCHEMA_FILES[manifest["kind"]]).read_text()
    # Half a megabyte: PyYAML's own parser takes seconds for it.
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = manifest["apiVersion"].split("/")[1]
    return next(v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == version)


def refuse_unknown_fields(schema: Any) -> Any:
    """Kubernetes drops unknown fields silently; a test should not."""
    if isinstance(schema, list):
        return [refuse_unknown_fields(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: refuse_unknown_fields(value) for name, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def clusters(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_a_manifest_fits_kuberays_schema(path: Path, shared_data: Path):
    manifest = yaml.safe_load(path.read_text())
    schema = schema_for(manifest, shared_data / "kuberay-crds")
    closed = refuse_unknown_fields(schema["properties"]["spec"])
    jsonschema.Draft202012Validator(closed).validate(manifest["spec"])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_a_manifest_asks_for_authentication_and_this_release(path: Path):
    cluster = clusters(yaml.safe_load(path.read_text()))
    assert cluster["authOptions"]["mode"] == "token"
    images = [
        c["image"]
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for c in group["template"]["spec"]["containers"]
    ]
    assert all(image.startswith("dynamictrl/") and image.endswith(":0.1.0") for image in images)


def test_job_entrypoints_name_recipes_that_exist():
    from pipelines import recipes as pipeline_recipes
    from training import recipes as training_recipes

    for path in MANIFESTS:
        manifest = yaml.safe_load(path.read_text())
        if manifest["kind"] == "RayJob":
            words = shlex.split(manifest["spec"]["entrypoint"])
            module = {"pipelines": pipeline_recipes, "training": training_recipes}[words[2]]
            assert words[3] in module.RECIPES


@pytest.mark.parametrize("path", sorted((INFRA / "kuberay").glob("train*.yaml")), ids=lambda p: p.name)
def test_training_jobs_give_settings_that_a_run_can_work_with(path: Path):
    import tyro

    from training.__main__ import Quiet
    from training.cluster.worker_counts import legal_counts
    from training.recipes import RECIPES

    manifest = yaml.safe_load(path.read_text())
    words = shlex.split(manifest["spec"]["entrypoint"])
    start = RECIPES[words[3]]()
    given = words[8:]  # after the recipe, --data and --out
    recipe = tyro.cli(type(start), args=given, default=start, config=Quiet)
    gpus = [
        int(container["resources"]["limits"]["nvidia.com/gpu"]) * group["maxReplicas"]
        for group in clusters(manifest)["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    ]
    assert legal_counts(recipe)[-1] == sum(gpus)


def test_preemptible_workers_tell_ray_before_they_go():
    manifest = yaml.safe_load((INFRA / "kuberay" / "train-elastic-job.yaml").read_text())
    (group,) = clusters(manifest)["workerGroupSpecs"]
    pod = group["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    words = shlex.split(command.split(";")[0])
    seconds = int(words[words.index("--deadline-remaining-seconds") + 1])

    assert words[:2] == ["ray", "drain-node"]
    assert seconds < pod["terminationGracePeriodSeconds"]


def test_the_service_names_an_application_that_exists():
    import importlib

    manifest = yaml.safe_load((INFRA / "kuberay" / "serve.yaml").read_text())
    applications = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    for application in applications:
        module, name = application["import_path"].split(":")
        assert callable(getattr(importlib.import_module(module), name))


def served() -> tuple[dict[str, Any], dict[str, Any]]:
    """The RayService's spec, and its one application."""
    spec = yaml.safe_load((INFRA / "kuberay" / "serve.yaml").read_text())["spec"]
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    return spec, application


def test_the_services_settings_are_legal_and_its_deployments_are_there():
    from ray.serve._private.build_app import build_app
    from ray.serve.schema import ServeDeploySchema

    from serving.cluster.app import build

    spec, application = served()
    ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    built = build_app(build(application["args"]), name="dynamictrl")
    assert {row["name"] for row in application["deployments"]} <= {row.name for row in built.deployments}


def test_no_upgrade_and_no_drain_is_shorter_than_it_must_be():
    from serving.cluster.app import DRAIN_MARGIN_S

    spec, application = served()
    longest = float(application["args"]["longest_job_s"])
    assert spec["rayClusterDeletionDelaySeconds"] > longest + DRAIN_MARGIN_S
    (group,) = clusters({"spec": spec})["workerGroupSpecs"]
    pod = group["template"]["spec"]
    command = shlex.split(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1].split(";")[0])
    deadline = int(command[command.index("--deadline-remaining-seconds") + 1])
    assert deadline < pod["terminationGracePeriodSeconds"]


def test_as_many_nodes_may_come_as_engines():
    spec, application = served()
    cluster = clusters({"spec": spec})
    (group,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"]
    assert group["maxReplicas"] == int(application["args"]["max_engines"])
    assert group["minReplicas"] == int(application["args"]["min_engines"])


def test_compose_parses_and_publishes_to_loopback_only():
    compose = yaml.safe_load((INFRA / "docker" / "compose.yaml").read_text())
    published = [p for service in compose["services"].values() for p in service.get("ports", [])]
    assert published
    assert all(p.startswith("127.0.0.1:") for p in published)


def test_every_image_target_installs_a_lock_that_is_there():
    text = (INFRA / "docker" / "Dockerfile").read_text()
    locks = [w.split("/")[-1] for w in text.split() if w.startswith("infra/docker/requirements-")]
    assert len(locks) == 5
    assert all((INFRA / "docker" / lock).is_file() for lock in locks)
