"""The manifests of deploy/kuberay: what Kubernetes', KubeRay's and Serve's own rules say of them, and what must agree with ours.

KubeRay's schema is not at hand. `Service` below is a model of ours with the fields of its API reference (ray.io/v1, KubeRay
1.6) that the manifest may use: it finds names that are misspelt or in the wrong place, not what the operator makes of them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field
from ray import __version__ as ray_version
from ray.serve.schema import ServeDeploySchema

from config.settings import MIB, SECRET_SETTINGS, Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
KUBERNETES = kubernetes_validate.latest_version()
RAY_SERVICE, KUSTOMIZATION = "RayService", "Kustomization"
APP = {"app.kubernetes.io/name": "kinlens"}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=47)  # more, and names of pods get too long
    labels: dict[str, str]


class Auth(Part):
    mode: Literal["disabled", "token"]


class SecretKey(Part):
    name: str
    key: str


class ValueFrom(Part):
    secretKeyRef: SecretKey  # noqa: N815


class Credential(Part):
    valueFrom: ValueFrom  # noqa: N815


class FaultTolerance(Part):
    redisAddress: str  # noqa: N815
    redisPassword: Credential  # noqa: N815


class Head(Part):
    serviceType: Literal["ClusterIP"]  # noqa: N815
    rayStartParams: dict[str, str]  # noqa: N815
    template: dict[str, Any]


class Workers(Part):
    groupName: str  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815
    rayStartParams: dict[str, str]  # noqa: N815
    template: dict[str, Any]


class Cluster(Part):
    rayVersion: str  # noqa: N815
    authOptions: Auth  # noqa: N815
    gcsFaultToleranceOptions: FaultTolerance  # noqa: N815
    headGroupSpec: Head  # noqa: N815
    workerGroupSpecs: list[Workers]  # noqa: N815


class Upgrade(Part):
    type: Literal["NewCluster", "None"]


class Spec(Part):
    serveConfigV2: str  # noqa: N815
    upgradeStrategy: Upgrade  # noqa: N815
    excludeHeadPodFromServeSvc: bool  # noqa: N815
    serveService: dict[str, Any]  # noqa: N815
    rayClusterConfig: Cluster  # noqa: N815


class Service(Part):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayService"]
    metadata: Metadata
    spec: Spec


def manifests() -> dict[str, list[dict[str, Any]]]:
    return {path.name: list(yaml.safe_load_all(path.read_text(encoding="utf-8"))) for path in sorted(FOLDER.glob("*.yaml"))}


def one(kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [
        each
        for documents in manifests().values()
        for each in documents
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]
    return found


def service() -> Service:
    return Service.model_validate(one(RAY_SERVICE))


def templates() -> dict[str, dict[str, Any]]:
    cluster = service().spec.rayClusterConfig
    return {"head": cluster.headGroupSpec.template, **{group.groupName: group.template for group in cluster.workerGroupSpecs}}


def containers() -> Iterator[dict[str, Any]]:
    for template in templates().values():
        yield from template["spec"]["containers"]


def test_what_kubernetes_knows_is_as_its_schema_says() -> None:
    assert Version(KUBERNETES) >= Version("1.34")
    checked = []
    for documents in manifests().values():
        for each in documents:
            if each["kind"] not in (RAY_SERVICE, KUSTOMIZATION):
                kubernetes_validate.validate(each, KUBERNETES, strict=True)
                checked.append(each["kind"])
    assert set(checked) == {"ConfigMap", "Secret", "Ingress", "NetworkPolicy", "PodDisruptionBudget"}


def test_a_mistake_would_be_found() -> None:
    broken = one("PodDisruptionBudget") | {"spec": {"minAvailabel": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_pods_and_the_service_within_it_are_as_kubernetes_schema_says() -> None:
    kubernetes_validate.validate(service().spec.serveService, KUBERNETES, strict=True)
    for name, template in templates().items():
        # As the operator makes a pod of it.
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_serve_config_is_the_profile() -> None:
    within = service().spec.serveConfigV2
    profile = (ROOT / "config" / "serve_cpu_cluster.yaml").read_text(encoding="utf-8")
    assert within == profile, "copy config/serve_cpu_cluster.yaml into serveConfigV2"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(within))
    assert schema.http_options.port == service().spec.serveService["spec"]["ports"][0]["port"] == 8000


def test_every_name_of_the_environment_is_a_setting() -> None:
    known = {name.upper() for name in Settings.model_fields}
    plain, secret = one("ConfigMap")["data"], one("Secret", "kinlens")["stringData"]
    given = {entry["name"] for container in containers() for entry in container.get("env", ())}
    assert given | set(plain) | set(secret) <= known
    secrets = {name.upper() for name in SECRET_SETTINGS}
    assert set(secret) <= secrets and not set(plain) & secrets
    # Without these each pod would have a key, a database and pictures of its own.
    assert {"API_KEY", "DATABASE_URL", "MINIO_ENDPOINT"} <= set(plain) | set(secret)
    for container in containers():
        assert {next(iter(source.values()))["name"] for source in container["envFrom"]} == {"kinlens"}


def test_the_settings_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (one("ConfigMap")["data"] | one("Secret", "kinlens")["stringData"]).items():
        monkeypatch.setenv(name, value)
    assert Settings().minio_secure


def test_ray_is_the_one_that_is_installed_and_asks_for_its_token() -> None:
    cluster = service().spec.rayClusterConfig
    assert cluster.rayVersion == ray_version
    assert cluster.authOptions.mode == "token"


def test_the_head_runs_no_replicas_and_its_state_survives_it() -> None:
    cluster = service().spec.rayClusterConfig
    assert cluster.headGroupSpec.rayStartParams["num-cpus"] == "0"
    password = cluster.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef
    assert password.key in one("Secret", password.name)["stringData"]


def test_the_machines_have_room_for_the_profile() -> None:
    spec = service().spec
    config = yaml.safe_load(spec.serveConfigV2)
    needed = sum(
        each["autoscaling_config"]["max_replicas"] * each["ray_actor_options"]["num_cpus"]
        for each in config["applications"][0]["deployments"]
    )
    (group,) = spec.rayClusterConfig.workerGroupSpecs
    (container,) = group.template["spec"]["containers"]
    assert needed <= group.minReplicas * int(container["resources"]["limits"]["cpu"])
    grace_s = max(each["graceful_shutdown_timeout_s"] for each in config["applications"][0]["deployments"])
    assert group.template["spec"]["terminationGracePeriodSeconds"] > grace_s


@pytest.mark.parametrize("name", ["head", "replicas"])
def test_a_pod_may_do_little(name: str) -> None:
    template = templates()[name]
    assert template["metadata"]["labels"].items() >= APP.items()
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert user and (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == tuple(
        map(int, user.groups())
    )
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"startupProbe", "readinessProbe", "livenessProbe", "resources"} <= set(container)
    # What is written to, as docs/operations.md says of the container.
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/home/kinlens", "/data", "/dev/shm"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


def test_probes_are_programs() -> None:
    for container in containers():
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = container[probe]["exec"]["command"]
            assert command[:2] == ["python", "-c"]
            compile(command[2], probe, "exec")


def test_selectors_select_the_pods() -> None:
    labels = [template["metadata"]["labels"] for template in templates().values()]
    budget = one("PodDisruptionBudget")["spec"]
    (group,) = service().spec.rayClusterConfig.workerGroupSpecs
    assert sum(each.items() >= budget["selector"]["matchLabels"].items() for each in labels) == 1
    assert group.template["metadata"]["labels"].items() >= budget["selector"]["matchLabels"].items()
    # A machine can be emptied.
    assert 0 < budget["minAvailable"] < group.minReplicas
    policy = one("NetworkPolicy")["spec"]
    assert all(each.items() >= policy["podSelector"]["matchLabels"].items() for each in labels)
    for constraint in group.template["spec"]["topologySpreadConstraints"]:
        assert group.template["metadata"]["labels"].items() >= constraint["labelSelector"]["matchLabels"].items()


def test_from_outside_only_the_service_is_reached() -> None:
    rules = one("NetworkPolicy")["spec"]["ingress"]
    inside = [rule for rule in rules if "ports" not in rule]
    assert inside == [{"from": [{"podSelector": {"matchLabels": APP}}]}]
    operator = [
        rule for rule in rules if any("podSelector" in source and "namespaceSelector" in source for source in rule["from"])
    ]
    others = [rule for rule in rules if rule not in inside and rule not in operator]
    assert {port["port"] for rule in others for port in rule["ports"]} == {8000}
    assert {port["port"] for rule in operator for port in rule["ports"]} == {8265, 8000}


def test_the_ingress_lets_through_what_kinlens_takes() -> None:
    ingress = one("Ingress")
    given = ingress["metadata"]["annotations"]
    limit = re.fullmatch(r"(\d+)m", given["nginx.ingress.kubernetes.io/proxy-body-size"])
    largest = max(Settings.model_fields[name].default for name in ("max_batch_bytes", "max_json_bytes", "max_image_bytes"))
    assert limit and largest < int(limit[1]) * MIB
    timeout_s = Settings.model_fields["worker_timeout"].default
    assert int(given["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > timeout_s
    target = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    served = service().spec.serveService
    assert target["name"] == served["metadata"]["name"]
    assert target["port"]["name"] in {port["name"] for port in served["spec"]["ports"]}
    assert ingress["spec"]["tls"][0]["hosts"] == [ingress["spec"]["rules"][0]["host"]]


def test_the_kustomization_has_all_but_the_secrets() -> None:
    within = set(yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["resources"])
    assert within == set(manifests()) - {"kustomization.yaml", "secrets.example.yaml"}


def test_kustomize_builds_it_with_an_image() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    built = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert "Secret" not in built
    text = yaml.safe_dump(built[RAY_SERVICE])
    images = re.findall(r"image: (\S+)", text)
    assert len(images) == 2 and all(re.fullmatch(r"registry\.example\.org/kinlens:[\w.]+", image) for image in images)
