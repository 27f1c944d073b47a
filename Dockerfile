# cuconv with pinned versions: docker build -t cuconv . && docker run --gpus all cuconv
# The CUDA wheels bring what is needed of CUDA beside the driver, so no CUDA base image is.
FROM python:3.12-slim
WORKDIR /opt/cuconv
COPY docker/requirements.txt docker/requirements.txt
RUN pip install --no-cache-dir -r docker/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY cuconv cuconv
COPY cuda_src cuda_src
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# Kernels for GPUs of these architectures are compiled here, so that a container starts warm. They are in a folder
# that calls only read: what is mounted over /cache does not hide it. Others are compiled when they are needed.
ARG ARCHITECTURES="sm_80 sm_89 sm_90"
RUN cuconv compile --bench $(printf ' --device %s' $ARCHITECTURES) \
    --dtype float32 --dtype float16 --layout channels_first --layout channels_last --out kernels
ENV CUCONV_KERNEL_DIR=/opt/cuconv/kernels

# Kernels compiled since and tuned algorithms are kept in a volume, owned by the user the container runs as.
COPY --chown=1000:1000 docker/cache /cache
ENV CUPY_CACHE_DIR=/cache
ENV CUCONV_CACHE_DIR=/cache
VOLUME /cache
USER 1000:1000
WORKDIR /tmp

ENTRYPOINT ["python", "-m", "cuconv"]
CMD ["check"]
