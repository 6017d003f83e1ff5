# One image for every process of a fog; the compose file says which one a container runs.
#
#   docker build -t e2llm .
#   docker build --build-arg PIP_INDEX_URL=https://pypi.example/simple --build-arg TORCH_INDEX= .
#
# PIP_INDEX_URL  the package index, where a site has its own; empty: pip's default.
# TORCH_INDEX    asked besides it, for torch without the CUDA packages; empty: none.
FROM python:3.11-slim AS build

ARG PIP_INDEX_URL=
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN python -m venv /opt/e2llm
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./

COPY scripts/image-install /usr/local/bin/image-install
# The dependencies first, in a layer of their own: they change less often than the code.
RUN mkdir -p broker planner nodes gateway fog \
    && for package in broker planner nodes gateway fog; do touch $package/__init__.py; done \
    && image-install '.[node,planner,gateway,gguf,traces,dashboard]' \
    && /opt/e2llm/bin/pip uninstall --yes e2llm

COPY broker ./broker
COPY planner ./planner
COPY nodes ./nodes
COPY gateway ./gateway
COPY fog ./fog
RUN image-install --no-deps .
# Under a path that does not depend on Python's version. From another folder: here, Python would
# find the sources beside it.
WORKDIR /
RUN ln -s "$(/opt/e2llm/bin/python -c 'import fog, os; print(os.path.dirname(fog.__file__))')/demo_model" \
        /opt/e2llm/demo-model \
    && test -f /opt/e2llm/demo-model/config.json

FROM python:3.11-slim
COPY --from=build /opt/e2llm /opt/e2llm
# Folders of volumes take their owner from the image.
RUN useradd --uid 10001 --create-home e2llm \
    && install -d -o e2llm -g e2llm /var/lib/e2llm
ENV PATH=/opt/e2llm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    MALLOC_ARENA_MAX=2 \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
    TOKENIZERS_PARALLELISM=false
USER e2llm
WORKDIR /var/lib/e2llm
CMD ["python", "-m", "nodes"]
