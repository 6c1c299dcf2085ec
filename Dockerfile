# One image for the API and the worker: `phalar api`, `phalar worker`, `phalar serve`.
FROM python:3.11-slim AS build
WORKDIR /src
# The CPU build of torch; for CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 --build-arg EXTRA=gpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRA=cpu
# A compiler for the axial CNN, three times as fast as without it.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/phalar
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY model model
COPY indexer indexer
COPY service service
RUN /opt/phalar/bin/pip install --no-cache-dir --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" ".[${EXTRA}]"

FROM python:3.11-slim
RUN useradd --uid 10001 --home-dir /data --no-create-home phalar && install -d -o phalar /data
COPY --from=build /opt/phalar /opt/phalar
ENV PATH=/opt/phalar/bin:$PATH PHALAR_DATA=/data PYTHONUNBUFFERED=1
USER phalar
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["phalar", "serve"]
