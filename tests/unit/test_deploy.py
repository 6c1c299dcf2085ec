"""The deployment: files that agree with each other and with the service, as their own programs read them."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
LOCKS = DEPLOY / "locks"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("api", "worker", "worker-gpu")
CUDA_ONLY = re.compile(r"(nvidia|cuda)-.*|triton|faiss-gpu")
PROFILES = (
    [],
    ["--profile", "gpu"],
    ["--profile", "observability"],
    ["--env-file", "deploy/scale.env"],
    ["--env-file", "deploy/scale.env", "--profile", "gpu", "--profile", "observability"],
)


def program(name: str) -> str:
    """Where a program lies: beside this Python, or on the PATH."""
    found = shutil.which(name, path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, **environment: str) -> str:
    """What a program prints; it has to be content."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def locked(path: Path) -> dict[str, str]:
    """Version by package."""
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


# ---------------------------------------------------------------- what the image installs


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_the_locks_pin_what_make_installs(variant: str) -> None:
    made = locked(ROOT / "constraints.txt")
    lock = locked(LOCKS / f"{variant}.txt")
    other = {name: version for name, version in lock.items() if made.get(name) != version}
    assert [name for name in other if not CUDA_ONLY.fullmatch(name)] == []


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_the_locks_hold_all_that_the_project_needs(variant: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = map(Requirement, [*project["dependencies"], *extras[variant], *extras.get("postgres", [])])
    lock = locked(LOCKS / f"{variant}.txt") | (locked(LOCKS / "torch-cpu.txt") if variant == "cpu" else {})
    for need in needs:
        assert need.specifier.contains(lock.get(canonicalize_name(need.name), "0")), f"{need}: run `make lock`"


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_every_locked_package_has_hashes(variant: str) -> None:
    text = (LOCKS / f"{variant}.txt").read_text(encoding="utf-8")
    without = [block for block in re.split(r"\n(?=[a-z])", text) if "==" in block and "--hash=sha256:" not in block]
    assert without == []


def test_the_cpu_image_carries_no_cuda_and_its_own_torch() -> None:
    lock = locked(LOCKS / "cpu.txt")
    assert [name for name in lock if CUDA_ONLY.fullmatch(name) or name == "torch"] == []
    assert locked(LOCKS / "torch-cpu.txt")["torch"].split("+")[0] == locked(ROOT / "constraints.txt")["torch"]


def test_the_image_copies_only_what_it_is_sent() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists()
        assert path in sent


# ---------------------------------------------------------------- compose


def test_what_compose_sets_is_a_setting() -> None:
    names = {name for service in OURS for name in SERVICES[service]["environment"] if name.startswith("PHALAR_")}
    assert names
    settings = {f"PHALAR_{name.upper()}" for name in Settings.model_fields}
    assert {name.removesuffix("_FILE") for name in names} - settings == set()


def test_every_container_is_held_to_limits() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
    assert all(SERVICES[name]["read_only"] for name in OURS)


def test_every_image_is_of_a_version() -> None:
    images = {name: service["image"] for name, service in SERVICES.items() if name not in OURS}
    assert [name for name, image in images.items() if not re.search(r":v?\d", image)] == []


def test_nothing_listens_beyond_this_machine_unasked() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(re.match(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+$", port) for port in published)


def test_stores_are_reached_from_the_inner_network_only() -> None:
    assert COMPOSE["networks"]["back"]["internal"] is True
    for name in ("postgres", "redis", "qdrant", "s3", "worker", "worker-gpu"):
        assert SERVICES[name]["networks"] == ["back"], name
        assert "ports" not in SERVICES[name], name


@pytest.mark.parametrize("options", PROFILES, ids=" ".join)
def test_compose_accepts_every_profile(options: list[str]) -> None:
    run(program("docker-compose"), *options, "config", "--quiet")


def test_the_scale_profile_moves_audio_and_index_out_of_the_data_volume() -> None:
    plan = yaml.safe_load(run(program("docker-compose"), "--env-file", "deploy/scale.env", "config"))["services"]
    assert {"s3", "qdrant"} < plan.keys()
    assert plan["api"]["deploy"]["replicas"] > 1
    assert plan["worker"]["deploy"]["replicas"] > 1
    for service in ("api", "worker"):
        assert plan[service]["environment"]["PHALAR_BLOB_URL"].startswith("s3://")
        assert plan[service]["environment"]["PHALAR_INDEX_URL"] == "http://qdrant:6333"


def test_without_the_scale_profile_the_index_is_a_file() -> None:
    plan = yaml.safe_load(run(program("docker-compose"), "config"))["services"]
    assert plan["api"]["environment"].get("PHALAR_INDEX_URL") is None


# ---------------------------------------------------------------- secrets


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """What make-secrets.sh has written, in a folder of its own."""
    shutil.copy(DEPLOY / "make-secrets.sh", tmp_path)
    run("sh", tmp_path / "make-secrets.sh")
    return tmp_path / "secrets"


def test_every_secret_that_compose_names_is_made(secrets: Path) -> None:
    named = {Path(secret["file"]) for secret in COMPOSE["secrets"].values()}
    assert {path.parent for path in named} == {Path("deploy/secrets")}
    assert {path.name for path in named} <= {file.name for file in secrets.iterdir()}
    uses = [use for service in SERVICES.values() for use in service.get("secrets", [])]
    used = {use["source"] if isinstance(use, dict) else use for use in uses}
    assert used == COMPOSE["secrets"].keys()
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_no_two_secrets_are_alike_and_none_is_made_twice(secrets: Path) -> None:
    before = {file.name: file.read_text(encoding="utf-8") for file in secrets.iterdir()}
    assert len(set(before.values())) == len(before)
    assert all(re.search("[0-9a-f]{48}", text) for text in before.values())
    run("sh", secrets.parent / "make-secrets.sh")
    assert {file.name: file.read_text(encoding="utf-8") for file in secrets.iterdir()} == before


def test_the_folder_of_secrets_is_closed(secrets: Path) -> None:
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700


def test_the_parts_of_a_secret_agree(secrets: Path) -> None:
    password = (secrets / "redis_password").read_text(encoding="utf-8").strip()
    assert (secrets / "redis.conf").read_text(encoding="utf-8") == f"requirepass {password}\n"
    assert f":{password}@redis:" in (secrets / "redis_url").read_text(encoding="utf-8")
    identity = json.loads((secrets / "s3.json").read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
    assert identity["accessKey"] == (secrets / "s3_key_id").read_text(encoding="utf-8").strip()
    assert identity["secretKey"] == (secrets / "s3_secret").read_text(encoding="utf-8").strip()


WITH_SECRETS = DEPLOY / "with-secrets"
SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def test_with_secrets_reads_a_file_into_the_variable(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cr3t $HOME\n", encoding="utf-8")
    shown = run(WITH_SECRETS, sys.executable, "-c", SHOW, PHALAR_ADMIN_KEY_FILE=str(tmp_path / "key"))
    assert json.loads(shown)["PHALAR_ADMIN_KEY"] == "s3cr3t $HOME"
    assert "PHALAR_ADMIN_KEY_FILE" not in json.loads(shown)


def test_with_secrets_leaves_files_that_are_none_of_ours(tmp_path: Path) -> None:
    shown = run(WITH_SECRETS, sys.executable, "-c", SHOW, AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"))
    assert json.loads(shown)["AWS_WEB_IDENTITY_TOKEN_FILE"] == str(tmp_path / "token")


@pytest.mark.parametrize("content", [None, ""], ids=["missing", "empty"])
def test_with_secrets_starts_nothing_without_the_secret(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    done = subprocess.run(
        [str(WITH_SECRETS), "echo", "started"],
        env=os.environ | {"PHALAR_ADMIN_KEY_FILE": str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert done.stdout == ""
    assert "PHALAR_ADMIN_KEY_FILE" in done.stderr


def test_with_secrets_hands_over_its_process() -> None:
    process = subprocess.Popen([str(WITH_SECRETS), "sh", "-c", "echo $$"], stdout=subprocess.PIPE, text=True)
    shown, _ = process.communicate(timeout=60)
    assert int(shown) == process.pid


# ---------------------------------------------------------------- as their own programs read them


def test_hadolint_finds_nothing() -> None:
    run(program("hadolint"), "Dockerfile")


def test_yamllint_finds_nothing() -> None:
    run(program("yamllint"), "--strict", "docker-compose.yml", "deploy")


@pytest.mark.parametrize("site", [":80", "stems.example.org"])
def test_caddy_accepts_its_file(site: str, tmp_path: Path) -> None:
    run(
        program("caddy"), "validate", "--adapter", "caddyfile", "--config", "deploy/proxy/Caddyfile",
        SITE=site, XDG_DATA_HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path),
    )  # fmt: skip


def test_promtool_accepts_the_configuration() -> None:
    run(program("promtool"), "check", "config", "--syntax-only", "deploy/prometheus/prometheus.yml")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    run(program("promtool"), "test", "rules", "deploy/prometheus/alerts_test.yml")


def alerts() -> Iterator[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        yield from group["rules"]


def test_every_alert_is_tried() -> None:
    tried = (DEPLOY / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8")
    assert [alert["alert"] for alert in alerts() if f'"{alert["alert"]}"' not in tried] == []


def test_every_alert_leads_to_a_page_of_the_runbook() -> None:
    headings = re.findall(r"^#+ (.*)$", (DEPLOY / "runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for alert in alerts():
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert page == "deploy/runbook.md"
        assert anchor in anchors, alert["alert"]


def services_named(command: str) -> Iterator[str]:
    """What a `docker compose` command is about."""
    words = iter(re.split(r" [<>|] ", command)[0].split()[2:])
    plain = [word for word in words if not (word in ("--profile", "--env-file") and next(words)) and word[0] != "-"]
    verb, *rest = plain or ["ps"]
    if verb in ("exec", "run"):
        yield rest[0]
    elif verb in ("up", "stop", "start", "restart", "logs", "ps"):
        yield from rest


def test_the_documents_name_only_services_that_exist() -> None:
    for page in ("runbook.md", "README.md"):
        commands = re.findall(r"docker compose [^`\n#)…]+", (DEPLOY / page).read_text(encoding="utf-8"))
        named = {name for command in commands for name in services_named(command)}
        assert named
        assert named - SERVICES.keys() == set()
