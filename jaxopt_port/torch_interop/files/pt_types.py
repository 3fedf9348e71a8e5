"""What torch's files may hold: torch's names for element types, the limits, and the one error."""

import ml_dtypes
import numpy as np

MAX_DEPTH = 100  # of containers inside containers; checkpoints have about 5


class PtFileError(ValueError):
    """A file of torch's that cannot be read or written: damaged, hostile, or holding what is not plain data."""


# torch writes its older element types as a class of storage, and the newer ones as untyped bytes beside a dtype.
STORAGES: dict[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.ComplexFloatStorage": np.dtype("<c8"),
    "torch.ComplexDoubleStorage": np.dtype("<c16"),
}
QUANTIZED_STORAGES: dict[str, np.dtype] = {  # and one that NumPy has no type for; no tensor of these is plain data
    "torch.QInt8Storage": np.dtype("i1"),
    "torch.QUInt8Storage": np.dtype("u1"),
    "torch.QInt32Storage": np.dtype("<i4"),
    "torch.QUInt4x2Storage": np.dtype("V1"),
    "torch.QUInt2x4Storage": np.dtype("V1"),
    "torch.ComplexHalfStorage": np.dtype("V4"),
}
UNTYPED_STORAGE = "torch.storage.UntypedStorage"
UNTYPED_DTYPES: dict[str, np.dtype] = {
    "torch.uint16": np.dtype("<u2"),
    "torch.uint32": np.dtype("<u4"),
    "torch.uint64": np.dtype("<u8"),
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "torch.float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}
DTYPES: dict[str, np.dtype] = {f"torch.{dtype.name}": dtype for dtype in STORAGES.values()} | UNTYPED_DTYPES
