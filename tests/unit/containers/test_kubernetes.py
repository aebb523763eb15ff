"""The manifests: valid, as closed as Kubernetes' restricted profile, and the same stack as compose's."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.notifying import VARIABLE as NOTIFY
from tasks.promotion.lock import lock_database
from tasks.promotion.notices import WEBHOOK_SECRET, WEBHOOKS

PODS = ("Deployment", "StatefulSet", "Job")


def pods(resources: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, pod's specification) of all that start pods."""
    for it in resources:
        if it["kind"] in PODS:
            yield it["metadata"]["name"], it["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply --kustomize` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_every_resource_fits_its_schema(files: Any) -> None:
    validation = pytest.importorskip("kubernetes_validate", reason="pip install 'loraline[test]'")
    resources = files.kubernetes()
    resources += yaml.safe_load_all(
        (files.root / "deployments/kubernetes/stack/secrets.example.yaml").read_text()
    )
    assert len(resources) > 15
    for resource in resources:
        # The unknown is refused, too: kubectl only warns.
        validation.validate(resource, desired_version="1.33", strict=True)


@pytest.mark.parametrize("folder", ["stack", "job-pool"])
def test_kustomize_puts_it_together(files: Any, folder: str) -> None:
    resources = kustomized(files.root / "deployments/kubernetes" / folder)
    found = dict(pods(resources))
    assert set(found) >= {"prefect", "mlflow", "loraline-worker"}
    (worker,) = found["loraline-worker"]["containers"]
    assert ("loraline-launcher" in found) == (folder == "job-pool")
    # With jobs, the worker's pod has no GPU and starts no training; both probe and command say so.
    assert ("nvidia.com/gpu" in worker["resources"]["limits"]) == (folder == "stack")
    file = "worker.conf" if folder == "stack" else "registry.conf"
    assert worker["args"][-1] == f"/etc/loraline/{file}"
    assert worker["readinessProbe"]["exec"]["command"][-2] == f"/etc/loraline/{file}"
    modes = {
        it["metadata"]["name"]: it["spec"]["accessModes"]
        for it in resources
        if it["kind"] == "PersistentVolumeClaim"
    }
    many = ["ReadWriteMany"] if folder == "job-pool" else ["ReadWriteOnce"]
    assert modes["loraline-home"] == modes["loraline-hub"] == many


def test_the_pool_of_jobs_is_there_before_anybody_makes_another(files: Any) -> None:
    """`loraline deploy` creates one of processes where none is, and a launcher one of Prefect's own template."""
    validation = pytest.importorskip("kubernetes_validate", reason="pip install 'loraline[test]'")
    resources = kustomized(files.root / "deployments/kubernetes/job-pool")
    for resource in resources:
        validation.validate(resource, desired_version="1.33", strict=True)
    found = dict(pods(resources))
    worker, launcher = found["loraline-worker"], found["loraline-launcher"]
    assert [it["name"] for it in worker["initContainers"]] == ["pool", "deploy"]
    assert [it["name"] for it in launcher["initContainers"]] == ["pool"]
    assert worker["initContainers"][0] == launcher["initContainers"][0]
    for pod in (worker, launcher):
        mounts = pod["initContainers"][0]["volumeMounts"]
        assert {it["name"] for it in mounts} <= {it["name"] for it in pod["volumes"]}
    command = launcher["containers"][0]["args"]
    assert "--no-create-pool-if-not-found" in command
    # Its slots are free again as soon as the cluster has the job: the pool has the limit.
    assert "--limit" not in command
    pool = launcher["initContainers"][0]["args"]
    assert pool[:3] == ["python", "/etc/loraline/pool.py", "kubernetes"]
    assert pool[pool.index("--limit") + 1] == "1"
    # The worker of processes is not there to serve it.
    assert worker["containers"][0]["args"][-1].endswith("/registry.conf")


def test_a_registry_that_is_named_once_is_that_of_launcher_pool_and_jobs(
    files: Any, tmp_path: Path
) -> None:
    shutil.copytree(files.root / "deployments/kubernetes", tmp_path / "kubernetes")
    path = tmp_path / "kubernetes/stack/kustomization.yaml"
    document = yaml.safe_load(path.read_text())
    for image in document["images"]:
        image.update(newName=f"registry.example:5000/team/{image['name']}", newTag="7")
    path.write_text(yaml.safe_dump(document))
    resources = kustomized(path.parents[1] / "job-pool")
    ours = "registry.example:5000/team/loraline"
    for name, pod in pods(resources):
        for container in containers(pod):
            assert container["image"] in (f"{ours}-server:7", f"{ours}-worker:7"), name
            if container["name"] == "pool":
                args = container["args"]
                assert args[args.index("--image") + 1] == f"{ours}-worker:7", name


@pytest.mark.parametrize("folder", ["stack", "job-pool"])
def test_the_kustomization_names_each_file_but_the_secrets(files: Any, folder: str) -> None:
    place = files.root / "deployments/kubernetes" / folder
    named = yaml.safe_load((place / "kustomization.yaml").read_text())["resources"]
    there = {it.name for it in place.glob("*.yaml")} - {
        "kustomization.yaml",
        "secrets.example.yaml",
    }
    assert {it for it in named if not it.startswith("..")} == there
    for outside in (it for it in named if it.startswith("..")):
        assert (place / outside / "kustomization.yaml").is_file()


def test_no_pod_is_root_gains_rights_or_writes_its_image(files: Any) -> None:
    """Kubernetes' profile `restricted`, which the namespace enforces, and a read-only image beyond it."""
    (namespace,) = [it for it in files.kubernetes() if it["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    found = list(pods(files.kubernetes()))
    assert len(found) == 4
    for name, pod in found:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (10001,) * 3
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.get("hostNetwork") and not pod.get("hostPID"), name  # noqa: PT018
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, container["name"]
        # A writable place for each that its image's variables name.
        mounted = {
            it["mountPath"] for container in containers(pod) for it in container["volumeMounts"]
        }
        assert {"/tmp", "/var/lib/loraline"} <= mounted
        assert not [it for it in pod["volumes"] if "hostPath" in it]


def test_only_the_launcher_may_ask_the_cluster_and_only_for_jobs(files: Any) -> None:
    accounts = {
        name: pod.get("automountServiceAccountToken", True)
        for name, pod in pods(files.kubernetes())
    }
    assert [name for name, mounted in accounts.items() if mounted] == ["loraline-launcher"]
    (role,) = [it for it in files.kubernetes("job-pool") if it["kind"] == "Role"]
    writing = {
        resource
        for rule in role["rules"]
        if set(rule["verbs"]) - {"get", "list", "watch"}
        for resource in rule["resources"]
    }
    assert writing == {"jobs"}
    assert not any("secrets" in rule["resources"] or "*" in str(rule) for rule in role["rules"])


def test_no_service_sets_variables_that_a_server_takes_for_its_own(files: Any) -> None:
    """Of a service `mlflow`, Kubernetes makes MLFLOW_PORT=tcp://..., which is the server's `--port`."""
    services = [it["metadata"]["name"] for it in files.kubernetes() if it["kind"] == "Service"]
    assert "mlflow" in services
    for name, pod in pods(files.kubernetes()):
        assert pod["enableServiceLinks"] is False, name


def test_servers_are_probed_patiently_and_a_training_is_never_ended_by_a_probe(files: Any) -> None:
    for name, pod in pods(files.kubernetes()):
        (container,) = pod["containers"]
        if name == "loraline-worker":
            assert "livenessProbe" not in container
            assert "readinessProbe" in container
            continue
        live = container["livenessProbe"]
        patience = live["periodSeconds"] * live["failureThreshold"]
        assert patience >= (300 if name in ("prefect", "mlflow") else 120), name
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] >= 300
        ports = {it["name"] for it in container["ports"]}
        assert live["httpGet"]["port"] in ports
        paths = {"prefect": "/api/health", "mlflow": "/health", "loraline-launcher": "/health"}
        assert live["httpGet"]["path"] == start["httpGet"]["path"] == paths[name]


def test_every_container_says_what_it_needs_and_at_most_takes(files: Any) -> None:
    for _, pod in pods(files.kubernetes()):
        for container in containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), container["name"]
            assert "memory" in container["resources"]["limits"]
    (worker,) = dict(pods(files.kubernetes()))["loraline-worker"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    shared = [
        it
        for it in dict(pods(files.kubernetes()))["loraline-worker"]["volumes"]
        if "emptyDir" in it
    ]
    assert any(it["emptyDir"].get("medium") == "Memory" for it in shared)


def test_images_are_ours_and_of_this_version(files: Any) -> None:
    version = files.project()["version"]
    for _, pod in pods(files.kubernetes()):
        for container in containers(pod):
            name, _, tag = container["image"].partition(":")
            assert name in ("loraline-server", "loraline-worker")
            assert tag == version
    text = (files.root / "deployments/kubernetes/stack/kustomization.yaml").read_text()
    assert [it["newTag"] for it in yaml.safe_load(text)["images"]] == [version, version]


def test_no_file_has_the_value_of_a_secret_and_every_key_that_is_asked_for_is_listed(
    files: Any,
) -> None:
    text = (files.root / "deployments/kubernetes/stack/secrets.example.yaml").read_text()
    secrets = {it["metadata"]["name"]: it["stringData"] for it in yaml.safe_load_all(text)}
    assert all(value == "" for keys in secrets.values() for value in keys.values())
    assert not [
        it for it in files.kubernetes() if it["kind"] == "Secret" and any(it["stringData"].values())
    ]
    asked = {
        (it["valueFrom"]["secretKeyRef"]["name"], it["valueFrom"]["secretKeyRef"]["key"])
        for _, pod in pods(files.kubernetes())
        for container in containers(pod)
        for it in container.get("env", [])
        if "secretKeyRef" in it.get("valueFrom", {})
    }
    assert asked <= {(name, key) for name, keys in secrets.items() for key in keys}
    # All of the servers' are used; the clients' are read as a whole.
    assert {key for name, key in asked if name == "loraline-servers"} == set(
        secrets["loraline-servers"]
    )
    assert not [
        it
        for it in secrets["loraline-clients"]
        if it.startswith(("PREFECT_SERVER_", "MLFLOW_AUTH_", "MLFLOW_FLASK_"))
    ]


def test_each_server_migrates_its_database_before_it_starts_and_alone(files: Any) -> None:
    for name in ("prefect", "mlflow"):
        (deployment,) = [
            it
            for it in files.kubernetes()
            if it["kind"] == "Deployment" and it["metadata"]["name"] == name
        ]
        assert deployment["spec"]["replicas"] == 1
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}
        pod = deployment["spec"]["template"]["spec"]
        (prepare,) = pod["initContainers"]
        (server,) = pod["containers"]
        assert prepare["args"] == ["python", "/etc/loraline/prepare.py", name]
        assert prepare["env"] == server["env"]
        assert prepare["envFrom"] == server["envFrom"]


def test_the_servers_are_those_of_compose(files: Any) -> None:
    """The same commands, and the same settings but for where things are and who knows the secrets."""
    services = files.compose()["services"]
    elsewhere = {
        "PGHOST",
        "PGPORT",
        "AWS_ENDPOINT_URL_S3",
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
    }
    for name in ("prefect", "mlflow"):
        (container,) = dict(pods(files.kubernetes()))[name]["containers"]
        assert container["args"] == services[name]["command"]
        environment = {it["name"]: it.get("value") for it in container["env"]}
        wanted = services[name]["environment"]
        assert set(environment) == set(wanted) - elsewhere
        for variable, value in environment.items():
            # Without a value here it comes from a secret. No port is published that could be another one.
            once = ",".join(dict.fromkeys(wanted[variable].split(",")))
            assert value in (None, once), variable
            assert ("canary" in wanted[variable]) <= (value is None), variable


def test_a_worker_knows_what_compose_tells_it(files: Any) -> None:
    maps = {
        it["metadata"]["name"]: it["data"] for it in files.kubernetes() if it["kind"] == "ConfigMap"
    }
    text = (files.root / "deployments/kubernetes/stack/secrets.example.yaml").read_text()
    secrets = {it["metadata"]["name"]: it["stringData"] for it in yaml.safe_load_all(text)}
    known = {**maps["loraline"], **secrets["loraline-clients"]}
    services = files.compose()["services"]
    wanted = {**services["deploy"]["environment"], **services["worker"]["environment"]}
    # GPUs are given to pods one by one: nobody takes turns. Metadata of a cloud's machine may be wanted there.
    elsewhere = {"LORALINE_GPU_LOCKS", "AWS_EC2_METADATA_DISABLED"}
    # Beside the number of GPUs in the pod's own file.
    assert set(wanted) - set(known) == {*elsewhere, "LORALINE_TRAININGS"}
    # An address that is sent alerts may hold a key, the name of a block does not.
    assert {WEBHOOKS, WEBHOOK_SECRET} <= set(secrets["loraline-clients"])
    assert NOTIFY in maps["loraline"]
    assert lock_database(known["MLFLOW_TRACKING_URI"], known) == wanted["LORALINE_LOCK_DATABASE"]
    assert maps["loraline-places"].items() <= maps["loraline"].items()
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "LORALINE_STORE", "PREFECT_UI_URL"):
        assert known[name] == wanted[name]


def test_policies_let_in_those_who_ask_and_nobody_else(files: Any) -> None:
    resources = files.kubernetes()
    policies = {
        it["metadata"]["name"]: it["spec"] for it in resources if it["kind"] == "NetworkPolicy"
    }
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    role = "app.kubernetes.io/component"
    roles = {
        it["spec"]["template"]["metadata"]["labels"][role] for it in resources if it["kind"] in PODS
    }
    # Launched jobs: their template is the work pool's.
    roles |= {"job"}
    for name in ("prefect", "mlflow"):
        assert policies[name]["podSelector"]["matchLabels"] == {role: name}
        (rule,) = policies[name]["ingress"]
        (source,) = rule["from"]
        (expression,) = source["podSelector"]["matchExpressions"]
        assert expression["key"] == role
        assert set(expression["values"]) <= roles - {"prefect", "mlflow"}
        (container,) = dict(pods(resources))[name]["containers"]
        assert [it["port"] for it in rule["ports"]] == [
            it["containerPort"] for it in container["ports"]
        ]
    assert {"worker", "job", "launcher"} == set(
        policies["prefect"]["ingress"][0]["from"][0]["podSelector"]["matchExpressions"][0]["values"]
    )


def test_services_lead_to_the_pods_of_their_name(files: Any) -> None:
    resources = files.kubernetes()
    labels = {
        it["metadata"]["name"]: it["spec"]["template"]["metadata"]["labels"]
        for it in resources
        if it["kind"] in PODS
    }
    for it in resources:
        if it["kind"] == "Service":
            assert it["spec"]["selector"].items() <= labels[it["metadata"]["name"]].items()
        if it["kind"] in PODS:
            assert it["spec"]["selector"]["matchLabels"] == labels[it["metadata"]["name"]]
    claims = {it["metadata"]["name"] for it in resources if it["kind"] == "PersistentVolumeClaim"}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, pod in pods(resources)
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used == claims


def test_a_recipe_that_cannot_be_scheduled_holds_up_no_worker(files: Any) -> None:
    (deploy,) = dict(pods(files.kubernetes()))["loraline-worker"]["initContainers"]
    shell, flag, line = deploy["args"]
    for code, expected in ((0, 0), (2, 0), (1, 1)):
        done = subprocess.run([shell, flag, f"loraline() {{ return {code}; }}; {line}"])
        assert done.returncode == expected
