# CPUs only: docker build -t frugal .    docker run --rm -v "$PWD/outputs:/frugal/outputs" frugal
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /frugal

# Dependencies first: a change of the code does not install them again.
COPY Makefile pyproject.toml constraints.txt ./
RUN make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu && rm -rf /root/.cache
ENV PATH=/frugal/.venv/bin:$PATH

COPY . .

CMD ["python", "run.py", "experiment=est_gpt2"]
