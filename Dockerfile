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

# Compiled kernels and tuned algorithms are kept in a volume, owned by the user the container runs as.
COPY --chown=1000:1000 docker/cache /cache
ENV CUPY_CACHE_DIR=/cache
ENV CUCONV_CACHE_DIR=/cache
VOLUME /cache
USER 1000:1000
WORKDIR /tmp

ENTRYPOINT ["python", "-m", "cuconv"]
CMD ["check"]
