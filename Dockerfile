# lavis_lite on CPUs: docker build -t lavis_lite . ; docker run --rm -v "$PWD:/work" lavis_lite train stage1
# For NVIDIA GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128, and `docker run --gpus all`.
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt --index-url "$TORCH_INDEX" torch torchvision \
    && pip install --no-cache-dir -c /src/constraints.txt /src \
    && rm -rf /src && useradd --create-home user
USER user
ENV LAVIS_LITE_CACHE=/home/user/.cache/lavis_lite
WORKDIR /work
ENTRYPOINT ["lavis-lite"]
CMD ["doctor"]
