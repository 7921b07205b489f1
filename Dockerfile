# The environment of requirements.lock as an image: `make image`. On a machine with GPUs give the torch
# that fits them first, as requirements.lock says.
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /warpflow
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir -r requirements.lock
COPY workflow ./workflow
RUN pip install --no-cache-dir --no-build-isolation --no-deps .
# Any user may run jobs in it, also one without a name: these folders are for all.
ENV HOME=/tmp XDG_CACHE_HOME=/tmp/cache
