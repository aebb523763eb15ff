# syntax=docker/dockerfile:1
# Two images from one lock. `server` runs Prefect's and MLflow's servers, their migrations and the launchers of
# jobs, without torch; `worker` runs the flows.
#
#   docker build --target server --tag loraline-server:0.1.0 .
#   docker build --target worker --tag loraline-worker:0.1.0 .
#
# Needs BuildKit (Docker 23 or later), or `podman build`. See docs/containers.md.
ARG PYTHON=3.11.15-slim-bookworm

FROM python:${PYTHON} AS python
ENV PATH=/opt/loraline/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    # As `python -P` everywhere: no folder of a project can take the place of a library.
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1

# The package itself: rebuilt with every change of the code, and nothing above it is.
FROM python AS wheel
WORKDIR /source
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --constraint requirements.lock hatchling
COPY pyproject.toml README.md LICENSE ./
COPY mlflow mlflow
COPY examples/starter examples/starter
COPY recipes recipes
COPY deployments deployments
COPY tasks tasks
COPY flows flows
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

# The worker's libraries: rebuilt only when the lock or the list of dependencies changes.
FROM python AS worker-libraries
WORKDIR /source
RUN python -m venv /opt/loraline
COPY pyproject.toml requirements.lock ./
# The ordinary index has the build of torch for NVIDIA GPUs, with CUDA's libraries; it computes on a CPU, too.
# Where there is no GPU, another index for torch alone saves gigabytes:
#   --build-arg TORCH_INDEX=ADDRESS_OF_THE_CPU_BUILDS
ARG TORCH_INDEX=""
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$TORCH_INDEX" ]; then \
      python -m pip install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.lock)"; \
    fi
# What to install stands in pyproject.toml, and which version of it in the lock, which also knows the tests' tools.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; extras = project["optional-dependencies"]; print(*project["dependencies"], *extras["s3"], *extras["postgresql"], "bitsandbytes", sep="\n")' > wanted.txt \
    && python -m pip install --constraint requirements.lock --requirement wanted.txt \
    && python -m pip check

# The servers' libraries, at the same versions.
FROM python AS server-libraries
WORKDIR /source
RUN python -m venv /opt/loraline
COPY requirements.lock deployments/containers/server.txt deployments/containers/server.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --constraint requirements.lock --constraint server.lock --requirement server.txt \
    && python -m pip check

# What both images have in common.
FROM python AS image
# A fixed number, which volumes and Kubernetes' `runAsUser` can name.
RUN groupadd --gid 10001 loraline \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/loraline --no-create-home --shell /usr/sbin/nologin loraline \
    && install --directory --owner=10001 --group=10001 /var/lib/loraline /var/cache/huggingface \
    && install --directory /srv/project/recipes /etc/loraline
ENV DO_NOT_TRACK=true \
    HF_HOME=/var/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HOME=/var/lib/loraline \
    LORALINE_HOME=/var/lib/loraline \
    LORALINE_PROJECT=/srv/project \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_HOME=/var/lib/loraline/prefect \
    PREFECT_PROFILES_PATH=/var/lib/loraline/prefect/profiles.toml \
    PREFECT_SERVER_ANALYTICS_ENABLED=false
WORKDIR /srv/project

FROM image AS server
COPY --from=server-libraries /opt/loraline /opt/loraline
COPY deployments/job-templates /etc/loraline/job-templates
COPY deployments/containers/mlflow-auth.ini deployments/containers/prepare.py deployments/containers/pool.py \
    /etc/loraline/
# Its dependencies are those above: the parts of it that run here need no more.
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python -m pip install --no-deps --no-index --no-cache-dir /dist/*.whl
USER 10001:10001
EXPOSE 4200 5000

FROM image AS worker
# Triton builds its launchers with a C compiler when a recipe sets `torch_compile`. Debian's mirrors keep no
# older versions, so that a pin here would end every build after the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=worker-libraries /opt/loraline /opt/loraline
COPY deployments/job-templates /etc/loraline/job-templates
COPY deployments/containers/watchdog.conf deployments/containers/registry.conf \
    deployments/containers/trainings.conf deployments/containers/worker.conf /etc/loraline/
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python -m pip install --no-deps --no-index --no-cache-dir /dist/*.whl \
    && python -m pip check
ENV LORALINE_TRAININGS=1 \
    # Compiled code of `torch_compile`: from /tmp, its default, nothing can be run where that is a tmpfs of Docker's.
    TORCHINDUCTOR_CACHE_DIR=/var/lib/loraline/cache/torchinductor
USER 10001:10001
# 0 only when each program of the file is running.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-m", "supervisor.supervisorctl", "-c", "/etc/loraline/worker.conf", "status"]
CMD ["python", "-m", "supervisor.supervisord", "-c", "/etc/loraline/worker.conf"]
