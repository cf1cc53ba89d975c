# The image that tools/launch_tpu.py starts on TPU hosts.
#
# docker build --tag us-docker.pkg.dev/PROJECT/REPOSITORY/qstar:1 .
FROM python:3.12-slim

WORKDIR /qstar_jax
COPY pyproject.toml README.md LICENSE ./
COPY constraints constraints
COPY configs configs
COPY qstar_jax qstar_jax

# JAX is pinned by the constraints, and libtpu by JAX.
RUN pip install --no-cache-dir --constraint constraints/py312.txt ".[tpu]"

# Lines of the log as they come. The program is to be the first process, or
# exec'd by it, so that SIGTERM reaches it.
ENV PYTHONUNBUFFERED=1
CMD ["qstar", "--help"]
