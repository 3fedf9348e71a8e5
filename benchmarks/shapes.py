"""The trees of parameters that are timed."""

Shape = tuple[int, ...]
LAYOUTS: dict[str, list[Shape]] = {
    "1 x 25M": [(5000, 5000)],
    "8 x 2M": [(1024, 2048)] * 8,
    "160 x 156k": [(156, 1000)] * 160,
    "1,000 x 10k": [(100, 100)] * 1000,
}
# Muon multiplies matrices, L-BFGS keeps 23 vectors: they get less. A thousand arrays of Muon or rows of SparseAdam take
# minutes to compile, ours and optax's.
INSTEAD: dict[str, dict[str, list[Shape]]] = {
    "muon": {"1 x 25M": [(1024, 2048)], "1,000 x 10k": [(100, 100)] * 160},
    "sparse_adam": {"1,000 x 10k": [(100, 100)] * 160},
    "lbfgs": {"1 x 25M": [(1000, 1000)], "8 x 2M": [(256, 512)] * 8, "160 x 156k": [(15, 1000)] * 160},
}


def layout(name: str, optimizer: str) -> list[Shape]:
    return INSTEAD.get(optimizer, {}).get(name, LAYOUTS[name])


def resnet50() -> list[Shape]:
    """25.6M parameters in 161 arrays."""
    shapes: list[Shape] = [(7, 7, 3, 64), (64,), (64,)]
    width = 64
    for blocks, inner in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            kernels = [(1, 1, width, inner), (3, 3, inner, inner), (1, 1, inner, 4 * inner)]
            kernels += [(1, 1, width, 4 * inner)] if block == 0 else []
            for kernel in kernels:
                shapes += [kernel, (kernel[-1],), (kernel[-1],)]
            width = 4 * inner
    return [*shapes, (2048, 1000), (1000,)]


def transformer(blocks: int, width: int) -> list[Shape]:
    dense = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    block = [*dense, *((kernel[1],) for kernel in dense), *[(width,)] * 4]
    return [*block * blocks, (width,), (width,)]


def vit_b16() -> list[Shape]:
    """86.6M parameters in 152 arrays."""
    return [(16, 16, 3, 768), (768,), (1, 1, 768), (1, 197, 768), *transformer(12, 768), (768, 1000), (1000,)]


def gpt2() -> list[Shape]:
    """124.4M parameters in 148 arrays."""
    return [(50257, 768), (1024, 768), *transformer(12, 768)]


MODELS = {"ResNet-50": resnet50, "ViT-B/16": vit_b16, "GPT-2": gpt2}
