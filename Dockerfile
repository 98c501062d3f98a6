# mre_lowshot in a container. For research only: not a medical device.
#
#   docker build -t mre_lowshot .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" mre_lowshot -i scans -o segmentations -m model.zip
#
# The other commands: docker run ... --entrypoint mre_train mre_lowshot ...
#
# CUDA (the driver and the NVIDIA container toolkit are the host's; run with --gpus all --shm-size 2g):
#   docker build -t mre_lowshot:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
# torch's packages hold the CUDA libraries, so that the base image may stay as it is.
ARG BASE=python:3.12-slim
FROM ${BASE}

# Where pip finds torch: the CPU builds, a tenth of the size of those with CUDA. Everything else comes from PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras of mre_lowshot, for example "dicom,tensorboard".
ARG EXTRAS=dicom

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

WORKDIR /opt/mre_lowshot
COPY constraints.txt ./
RUN python -m pip install -c constraints.txt torch --index-url ${TORCH_INDEX} --extra-index-url https://pypi.org/simple
COPY pyproject.toml README.md LICENSE ./
COPY planners/ planners/
COPY preprocessing/ preprocessing/
COPY trainers/ trainers/
COPY mre_lowshot/ mre_lowshot/
RUN python -m pip install -c constraints.txt ".[${EXTRAS}]"

# Not as root; with --user any other id works too: caches and the home folder are in /tmp.
RUN useradd --create-home --uid 10001 mre
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib MRE_WORKSPACE=/data/mre_data
USER mre
WORKDIR /data
ENTRYPOINT ["mre_predict"]
CMD ["--help"]
