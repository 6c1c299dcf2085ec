# One image for every process: `phalar api`, `phalar worker`, `phalar serve`.
#
#   docker build .                             torch for the CPU; x86_64 and aarch64
#   docker build --build-arg VARIANT=gpu .     torch and FAISS for CUDA; x86_64
#
# Every package is pinned by hash in deploy/locks/ (`make lock`); deploy/README.md tells what that does not cover.

FROM debian:bookworm-slim AS system
# Not pinned: a Debian version vanishes from the mirrors with the next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/*

FROM system AS packages
ARG VARIANT=cpu
# Where torch for the CPU comes from: PyPI has only the CUDA build.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/phalar
ENV PATH=/opt/phalar/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY deploy/locks /locks
RUN if [ "${VARIANT}" = cpu ]; then pip install --no-deps --index-url "${TORCH_INDEX}" -r /locks/torch-cpu.txt; fi
RUN pip install --require-hashes --no-deps -r "/locks/${VARIANT}.txt" && pip check

FROM packages AS app
# A compiler for the axial CNN, three times as fast as without it on x86_64.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY model model
COPY indexer indexer
COPY service service
# Into a folder of its own, so that a change of ours is a layer of some megabytes; then everything is imported once.
RUN pip install --no-deps --no-build-isolation --target /opt/app . \
    && PYTHONPATH=/opt/app /opt/app/bin/phalar --version \
    && PYTHONPATH=/opt/app python -c "import faiss, service.api.app, service.work.worker" \
    && { [ "$(uname -m)" != x86_64 ] || ls /opt/app/model/axial_*.so; }

FROM system
ARG VARIANT=cpu
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Phalar Retrieval (${VARIANT})" \
    org.opencontainers.image.description="Finds the stems of a catalog that fit a partial mix, in harmony and in time." \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
RUN groupadd --gid 10001 phalar \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin phalar \
    && install -d -o phalar -g phalar /data
COPY --from=packages /opt/phalar /opt/phalar
COPY --from=app /opt/app /opt/app
COPY deploy/with-secrets /usr/local/bin/with-secrets
ENV PATH=/opt/app/bin:/opt/phalar/bin:$PATH PYTHONPATH=/opt/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_ARENA_MAX=2 PHALAR_DATA=/data
USER 10001:10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"PHALAR_PORT\", 8000)}/livez', timeout=4)"]
# tini: reaps what decoders leave behind, and passes SIGTERM on, which every phalar process ends well by.
ENTRYPOINT ["tini", "--", "with-secrets"]
CMD ["phalar", "serve"]
