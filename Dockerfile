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

# An index that does not answer would be tried again by pip for every single package.
RUN <<'SH'
set -eu
[ -n "${PIP_INDEX_URL}" ] || unset PIP_INDEX_URL
cat > /usr/local/bin/install <<'INSTALL'
#!/bin/sh
set -eu
index="${TORCH_INDEX}"
if [ -n "$index" ] && ! python -c 'import sys, urllib.request, urllib.error
try:
    urllib.request.urlopen(sys.argv[1], timeout=5).close()
except urllib.error.HTTPError:
    pass' "$index" 2>/dev/null; then
    echo "$index does not answer; going on with the default package index alone." >&2
    index=
fi
[ -n "${PIP_INDEX_URL}" ] || unset PIP_INDEX_URL
exec /opt/e2llm/bin/pip install ${index:+--extra-index-url "$index"} "$@"
INSTALL
chmod +x /usr/local/bin/install
# The dependencies first, in a layer of their own: they change less often than the code.
mkdir -p broker planner nodes gateway fog
touch broker/__init__.py planner/__init__.py nodes/__init__.py gateway/__init__.py fog/__init__.py
install '.[node,planner,gateway]' && /opt/e2llm/bin/pip uninstall --yes e2llm
SH

COPY broker ./broker
COPY planner ./planner
COPY nodes ./nodes
COPY gateway ./gateway
COPY fog ./fog
RUN /opt/e2llm/bin/pip install --no-deps . \
    && ln -s "$(/opt/e2llm/bin/python -c 'import fog, os; print(os.path.dirname(fog.__file__))')/demo_model" \
        /opt/e2llm/demo-model

FROM python:3.11-slim
COPY --from=build /opt/e2llm /opt/e2llm
# Folders of volumes take their owner from the image.
RUN useradd --uid 10001 --create-home e2llm \
    && install -d -o e2llm -g e2llm /var/lib/e2llm
ENV PATH=/opt/e2llm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    MALLOC_ARENA_MAX=2 \
    TOKENIZERS_PARALLELISM=false
USER e2llm
WORKDIR /var/lib/e2llm
CMD ["python", "-m", "nodes"]
