"""Copernicus-Bench: its images a second beside the bare encoder's, and its heads at full size.

    python benchmarks/bench.py [--samples 32] [--repeat 3] [--device auto] [--dtype float32]

Images: made-up EuroSAT-S2 in its published form, 13 bands of 64 × 64 pixels as GeoTIFF, embedded
in four variants as `copcube bench` embeds them; beside the same images, resized and flipped in
memory before, given to the encoder alone. Both run in turns; the medians of the ratios are shown.

Heads: as many vectors as EuroSAT has, 16,200 to train with in four variants and 5400 each to
validate and test, of 768 numbers, drawn at random about a place for each class. The official
protocol takes 12,650 steps of 64; beside it the same loop in torch.nn and torch.optim. The fast
tier tries 40 strengths.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from copcube.encoder import EncoderSpec
from copcube.probes.bench import fast, official
from copcube.probes.bench.catalogue import find
from copcube.probes.bench.opening import open_dataset
from copcube.probes.bench.sample import write_bench_sample
from copcube.probes.bench.vectors import FLIPS, Vectors, _read, embedded

TASK = find("eurosat-s2")
DIM = 768


def seconds(function):
    begin, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begin, time.process_time() - cpu


def images(samples, repeat, device, dtype):
    encoder = EncoderSpec("untrained:0", pooling="mean", device=device, dtype=dtype).load()
    step = encoder.batch_size(TASK.sensor, TASK.size)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_bench_sample(data, tasks=["eurosat-s2"], images=samples)
        dataset = open_dataset(TASK, data)
        read = [
            _read(dataset, split, i)
            for split in ("train", "val", "test")
            for i in range(len(dataset.names(split)))
        ]
        images = [one.image for one in read if one.image is not None]
        pixels = [
            np.ascontiguousarray(np.flip(image, axes))
            for axes in FLIPS
            for image in images[:samples]
        ]
        pixels += images[samples:]
        metadata = np.array([one.metadata for one in [*read[:samples] * 4, *read[samples:]]])

        def bare():
            for a in range(0, len(pixels), step):
                encoder(TASK.sensor, pixels[a : a + step], metadata[a : a + step])

        def bench(n):
            embedded(dataset, encoder, Path(folder) / f"cache-{n}")

        bare()
        pairs = [(seconds(lambda n=n: bench(n)), seconds(bare)) for n in range(repeat)]
    ours, alone = np.moveaxis(np.array(pairs), 1, 0)
    rates = len(pixels) / np.median(ours[:, 0]), len(pixels) / np.median(alone[:, 0])
    print(f"{len(pixels)} images of 13 x 224 x 224, {encoder.device.type}, {dtype}")
    print("| | images/s | bare encoder | ratio | ratio by CPU time |\n|---|---|---|---|---|")
    wall, cpu = (np.median(alone[:, i] / ours[:, i]) for i in (0, 1))
    print(f"| bench | {rates[0]:.2f} | {rates[1]:.2f} | {wall:.3f} | {cpu:.3f} |")


def drawn(samples, variants, rng, places):
    target = rng.integers(0, len(TASK.classes), samples)
    spread = np.geomspace(3, 0.05, DIM).astype(np.float32)
    base = places[target] + rng.standard_normal((samples, DIM), np.float32) * spread
    noise = rng.standard_normal((variants, samples, DIM), np.float32)
    return Vectors(base + np.float32(0.1) * noise, target, {})


def by_torch(train, validation, epochs):
    norm = torch.nn.BatchNorm1d(DIM, affine=False, eps=1e-6)
    model = torch.nn.Sequential(norm, torch.nn.Linear(DIM, len(TASK.classes)))
    loss = torch.nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=TASK.rate, momentum=0.9, weight_decay=1e-4)
    vectors, target = (torch.from_numpy(x) for x in (train.vectors, train.target))
    rng = np.random.default_rng(0)
    total = epochs * (len(target) // TASK.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=TASK.rate, total_steps=total + 1, pct_start=0.0
    )
    for _ in range(epochs):
        model.train()
        for flips, order in official.batches(len(target), 4, TASK.batch, rng):
            optimiser.zero_grad()
            loss(model(vectors[flips, order]), target[order]).backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            model(torch.from_numpy(validation.vectors[0])).argmax(1)


def heads(epochs=50):
    rng = np.random.default_rng(0)
    places = 0.05 * rng.standard_normal((len(TASK.classes), DIM), np.float32)
    train, val, test = (drawn(n, v, rng, places) for n, v in ((16200, 4), (5400, 1), (5400, 1)))
    x, y = train.vectors[0], train.target
    print("\n| full size of EuroSAT | s | CPU s |\n|---|---|---|")
    for name, function in (
        ("official protocol, 50 epochs", lambda: official.train(TASK, train, val, epochs=epochs)),
        ("the same loop in torch", lambda: by_torch(train, val, epochs)),
        ("5 nearest neighbours", lambda: fast.neighbours(TASK, x, y, test.vectors[0])),
        (
            "logistic regression, 40 strengths",
            lambda: fast.logistic(TASK, (x, y), (val.vectors[0], val.target)),
        ),
    ):
        wall, cpu = seconds(function)
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    images(arguments.samples, arguments.repeat, arguments.device, arguments.dtype)
    heads()


if __name__ == "__main__":
    main()
