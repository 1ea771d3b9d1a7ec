"""Opening and writing data sets in any format. Each format has its own module.

A format that is read has a `ColumnSource` class or a function that returns a `Dataset`. A format that is written has
`capability(data) -> FormatCapability` and `write(data, path)`. A module is imported when it is used, so that the
packages it needs, such as h5py, are optional.
"""

from . import lerobot, npz
from .describe import check_finite, describe
from .detection import format_of
from .registry import (
    READERS,
    WRITERS,
    DecodingCost,
    RegisteredFormat,
    conversion_losses,
    decode_frames,
    formats_for_suffix,
    frame_cost,
    open_dataset,
    preview_dataset,
    write_dataset,
)

__all__ = [
    "READERS",
    "WRITERS", "RegisteredFormat",
    "DecodingCost",
    "check_finite",
    "conversion_losses",
    "decode_frames",
    "describe",
    "format_of",
    "formats_for_suffix",
    "frame_cost",
    "lerobot",
    "npz",
    "open_dataset",
    "preview_dataset",
    "write_dataset",
]
