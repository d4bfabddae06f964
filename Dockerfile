# The two images of the service: one for the MLflow server and Ray's head and workers, and a small one for the model
# server, without PyTorch and Ray.
#
#   docker build -t localhost/binsweep:0.1.0 .                       PyTorch without CUDA
#   docker build -t localhost/binsweep:0.1.0 --build-arg TORCH=cuda .
#   docker build -t localhost/binsweep-model-server:0.1.0 --target model-server .
FROM docker.io/library/python:3.11.15-slim-bookworm AS base

# The pins of PyTorch and its dependencies: its layer, by far the largest, is rebuilt only when these change.
FROM base AS pins
COPY constraints.txt /
RUN grep -iE '^(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*|filelock|fsspec|jinja2|markupsafe|mpmath|networkx|numpy|pillow|sympy|typing_extensions)==' \
    /constraints.txt > /torch.txt

# A user without rights, and a virtual environment.
FROM base AS python
RUN groupadd --gid 10001 binsweep \
 && useradd --uid 10001 --gid 10001 --create-home binsweep \
 && install -d -o binsweep -g binsweep /var/lib/binsweep \
 && python -m venv /opt/venv
# Telemetry is off, and no image holds a secret.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    BINSWEEP_HOME=/var/lib/binsweep \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=1 \
    GIT_PYTHON_REFRESH=quiet
WORKDIR /opt/binsweep

# Serves models that ONNX Runtime or OpenVINO computes.
FROM python AS model-server
COPY constraints.txt pyproject.toml ./
RUN python -c "import tomllib; groups = tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']; \
print(*groups['model-server'], sep='\n')" > /tmp/requirements.txt \
 && pip install -c constraints.txt -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt
COPY README.md LICENSE ./
COPY src src
COPY data data
COPY models models
COPY tracking tracking
COPY search search
RUN pip install --no-deps .
USER 10001:10001
CMD ["binsweep", "serve", "bin-counter", "--follow", "--host", "0.0.0.0", "--port", "5001"]

FROM python
# cpu: the builds of PyTorch's own index, without CUDA; pip prefers their versions (2.14.1+cpu) as the higher ones.
# cuda: the package registry's builds, with CUDA (5 GB more).
ARG TORCH=cpu

# Layers that change rarely come first: PyTorch, then the other packages, then the code.
COPY --from=pins /torch.txt /tmp/torch.txt
RUN case "$TORCH" in \
      cpu) pip install -c /tmp/torch.txt --extra-index-url https://download.pytorch.org/whl/cpu torch torchvision ;; \
      cuda) pip install -c /tmp/torch.txt torch torchvision ;; \
      *) echo "TORCH must be cpu or cuda, got '$TORCH'" >&2; exit 1 ;; \
    esac
COPY constraints.txt pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *extras['cluster'], *extras['service'], sep='\n')" > /tmp/requirements.txt \
 && pip install -c constraints.txt -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt
COPY README.md LICENSE ./
COPY src src
COPY data data
COPY models models
COPY tracking tracking
COPY search search
RUN pip install --no-deps .
COPY sweeps sweeps

ENV RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
CMD ["binsweep", "--help"]
