"""torch's initial weights, bit for bit, without torch.

The layers draw from a generator what torch's modules draw when they are made, in torch's order and layouts:

    generator = Generator(0)                        # torch.manual_seed(0)
    hidden = linear(generator, 784, 128)            # nn.Linear(784, 128)
    output = linear(generator, 128, 10)             # nn.Linear(128, 10)

Exact with torch on a CPU with AVX2 and, with `Generator(seed, avx2=False)`, without; see `rng.Generator` for what is
not reproduced. Neither are `orthogonal_`, whose QR decomposition differs between linear algebra libraries, and
`trunc_normal_` between bounds that hold less than 30 % of the normal distribution.
"""

from jaxopt_port.torch_interop.random.fills import (
    calculate_gain,
    kaiming_normal,
    kaiming_uniform,
    normal,
    trunc_normal,
    uniform,
    xavier_normal,
    xavier_uniform,
)
from jaxopt_port.torch_interop.random.layers import (
    batch_norm,
    conv,
    conv_transpose,
    embedding,
    layer_norm,
    linear,
    multihead_attention,
)

__all__ = [
    "batch_norm",
    "calculate_gain",
    "conv",
    "conv_transpose",
    "embedding",
    "kaiming_normal",
    "kaiming_uniform",
    "layer_norm",
    "linear",
    "multihead_attention",
    "normal",
    "trunc_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
]
