# The image that configs/kubernetes/job.yaml names:
#   docker build -t REGISTRY/wsss:0.1.0 . && docker push REGISTRY/wsss:0.1.0
#   docker run --gpus all --shm-size 16g -v $PWD:/work REGISTRY/wsss:0.1.0 wsss train demo/teacher
# On a cluster without Docker:  apptainer build wsss.sif docker://REGISTRY/wsss:0.1.0
FROM python:3.12-slim
# a C compiler: pydensecrf2 is built with it once, Triton's kernels and DeepSpeed's extension when they first run
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip install --no-cache-dir '/src[all]' && rm -rf /src
# data/ and runs/ of the working folder; the packages and the configs are installed
WORKDIR /work
CMD ["wsss", "--help"]
