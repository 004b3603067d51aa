# One image, one machine: the service with Ray, HAProxy and the default model pack. docs/operations.md shows how to run it.

FROM python:3.11-slim-bookworm AS build

ENV UV_PROJECT_ENVIRONMENT=/app/.venv \
    UV_PYTHON=/usr/local/bin/python3.11 \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1

RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore "uv>=0.13,<1"

# Extras of pyproject.toml, separated by spaces: --build-arg EXTRAS="deepface".
ARG EXTRAS=""

WORKDIR /src

# Dependencies first: this layer is built again only when the lock file changes.
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    set -- && for extra in $EXTRAS; do set -- "$@" --extra "$extra"; done \
    && uv sync --locked --no-dev --no-install-project "$@"

COPY LICENSE README.md serve_config.yaml ./
COPY config config
COPY deployments deployments
COPY serve_app serve_app
RUN --mount=type=cache,target=/root/.cache/uv \
    set -- && for extra in $EXTRAS; do set -- "$@" --extra "$extra"; done \
    && uv sync --locked --no-dev --no-editable "$@"

# What starts HAProxy, in the image: no program is run from where a container may write.
RUN cp serve_config.yaml /app/ \
    && /app/.venv/bin/python -c "from pathlib import Path; from serve_app.environment import install_haproxy; install_haproxy(Path('/app'))" \
    && chmod 0755 /app/haproxy

# What is in the image, for whoever looks for a known weakness: CycloneDX, of the lock file.
RUN set -- && for extra in $EXTRAS; do set -- "$@" --extra "$extra"; done \
    && uv export --quiet --locked --no-dev --format cyclonedx1.5 --preview-features sbom-export \
        --output-file /app/sbom.cdx.json "$@" > /dev/null


FROM python:3.11-slim-bookworm

# OpenCV, ONNX Runtime, libheif and HAProxy bring what they need in their wheels: no system packages.
RUN groupadd --gid 10001 kinlens \
    && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin kinlens \
    && install --directory --owner=kinlens --group=kinlens --mode=0700 /data /data/insightface /data/deepface

WORKDIR /app
COPY --from=build /app /app

# The RAY_ lines are serve_app/environment.py, which says what each is for. The object store is bounded because pictures
# do not travel through it.
ENV RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_HAPROXY_NBTHREAD=1 \
    RAY_SERVE_THROUGHPUT_OPTIMIZED=1 \
    RAY_SERVE_USE_GRPC_BY_DEFAULT=1 \
    RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=0 \
    RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=67108864 \
    RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S=2 \
    RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S=2 \
    RAY_SERVE_CONTROL_LOOP_INTERVAL_S=0.5 \
    RAY_SERVE_METRICS_EXPORT_INTERVAL_MS=1000 \
    RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S=60 \
    RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE=1 \
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=25 \
    RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=2 \
    RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=10 \
    RAY_raylet_start_wait_time_s=180 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 \
    RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=134217728 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/app/haproxy \
    HOST=0.0.0.0 \
    DATA_DIR=/data \
    MODEL_ROOT=/data/insightface \
    DEEPFACE_HOME=/data/deepface \
    PATH=/app/.venv/bin:$PATH

USER 10001:10001
VOLUME /data
EXPOSE 8000

HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/api/v1/health', timeout=4)"]

CMD ["kinlens", "up"]
