"""Encoding, decoding and resizing of camera frames: PNG and JPEG images and video files.

Training and acting use the same functions, so that equal frames give equal inputs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ..core import UserError

TIMESTAMP_TOLERANCE = 1e-4  # s between the requested time and the time of the frame
_TICKS = 90_000  # per second; the clock of written files
_TICK = Fraction(1, _TICKS)
MAX_CACHED_BYTES = 64 * 2**20  # bytes; files up to this size stay in memory as packets
_IMAGE_CODECS = {"png": "png", "jpeg": "mjpeg"}  # by `image_kind`
_FORMATS = {1: "gray", 3: "rgb24", 4: "rgba"}
_PYAV = int(av.__version__.partition(".")[0])
# For one frame, waking other threads takes longer than its conversion. PyAV before 18 had no option for this.
_SINGLE_THREAD = {"threads": 1} if _PYAV >= 18 else {}


# -- size -----------------------------------------------------------------------------------------------------------


def parse_image_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) in pixels, each from 1 to 8192, from a single side or a pair."""
    h, w = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not (1 <= h <= 8192 and 1 <= w <= 8192):
        raise UserError(f"the image size must be between 1 and 8192, not {image_size}",
                        hint="give a side in pixels, or height and width")
    return int(h), int(w)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes frames: the mean over the area of each new pixel for shrinking, bilinear interpolation for enlarging.

    The aspect ratio is not kept. Values are rounded half up, so equal frames give equal bytes on every machine.

    Args:
        frames: uint8 (..., H, W, C).
        size: New height and width (h, w), in pixels.

    Returns:
        uint8 (..., h, w, C).
    """
    *lead, height, width, channels = frames.shape
    if (height, width) == tuple(size):
        return frames
    out = np.empty((*lead, *size, channels), np.uint8)
    rows, columns = _resize_weights(height, size[0]), _resize_weights(width, size[1])
    flat, result = frames.reshape(-1, height, width, channels), out.reshape(-1, *size, channels)
    for i, frame in enumerate(flat):
        tall = (rows @ frame.reshape(height, -1).astype(np.float32)).reshape(size[0], width, channels)
        wide = np.einsum("wx,hxc->hwc", columns, tall, optimize=True)
        result[i] = np.floor(wide + 0.5 + 1e-3).clip(0, 255)  # 1e-3: sums of float32 weights miss halves by 1e-5
    return out


@lru_cache(32)
def _resize_weights(old: int, new: int) -> np.ndarray:
    """Returns the weight of each old line in each new one for resizing, (new, old) float32. Rows sum to 1."""
    scale = old / new
    if new <= old:
        low, high = np.arange(new)[:, None] * scale, np.arange(1, new + 1)[:, None] * scale
        lines = np.arange(old)[None]
        share = np.minimum(high, lines + 1) - np.maximum(low, lines)
        return (share.clip(0) / scale).astype(np.float32)
    centre = ((np.arange(new) + 0.5) * scale - 0.5).clip(0, old - 1)
    below = np.floor(centre).astype(int)
    above = np.minimum(below + 1, old - 1)
    out = np.zeros((new, old), np.float32)
    np.add.at(out, (np.arange(new), below), 1 - (centre - below))
    np.add.at(out, (np.arange(new), above), centre - below)
    return out


# -- single images --------------------------------------------------------------------------------------------------


def encode_png(frame: np.ndarray) -> bytes:
    """Encodes a frame as PNG, without loss: uint8 (H, W, C) with 1, 3 or 4 channels, or uint16 (H, W, 1)."""
    height, width, channels = frame.shape
    pixels = _FORMATS[channels] if frame.dtype == np.uint8 else "gray16be"
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = width, height, pixels, Fraction(1, 1)
    picture = frame[..., 0] if channels == 1 else frame
    image = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=pixels)
    return b"".join(bytes(p) for p in (*codec.encode(image), *codec.encode(None)))


def image_kind(data: bytes) -> str:
    """Returns the kind of an encoded image by its first bytes: "png" or "jpeg". Empty for any other bytes."""
    return "png" if data.startswith(b"\x89PNG") else "jpeg" if data.startswith(b"\xff\xd8\xff") else ""


def is_16_bit_gray(image: bytes) -> bool:
    """Returns whether an encoded image is a PNG with gray of 16 bits, such as depth in millimeters."""
    return image_kind(image) == "png" and image[24:26] == b"\x10\x00"


def decode_image(data: bytes | None, channels: int, where: str, dtype: str = "uint8") -> np.ndarray:
    """Decodes a PNG or JPEG image to (H, W, C).

    Gray of 16 bits is refused where 8 bits are to be read, and the reverse: it would be scaled by 256.

    Args:
        channels: Number of channels (C) of the result: 1 for gray, 3 for RGB, 4 for RGBA.
        dtype: "uint8", or "uint16" for depth.
    """
    kind = image_kind(data or b"")
    if not kind:
        content = "it is empty" if not data else f"it starts with {data[:8]!r}"
        raise UserError(f"the value is not a PNG or JPEG image: {content}", where=where,
                        hint="the image is damaged: leave the episode out, or take the file from a copy")
    if data and (has_16_bits := is_16_bit_gray(data)) != (dtype == "uint16"):
        raise UserError(f"the image is {'gray of 16 bits, such as depth' if has_16_bits else 'not gray of 16 bits'}, "
                        f"but {dtype} is to be read", where=where,
                        hint="leave the column out, or store all its images with one type")
    codec = cast(av.VideoCodecContext, av.CodecContext.create(_IMAGE_CODECS[kind], "r"))
    try:
        frames = [*codec.decode(av.Packet(data)), *codec.decode(None)]
    except av.FFmpegError as error:
        raise UserError(f"the {kind} image cannot be decoded ({error})", where=where,
                        hint="the image is damaged: leave the episode out, or take the file from a copy") from None
    if not frames:
        raise UserError(f"the {kind} image is not complete", where=where,
                        hint="the image is damaged: leave the episode out, or take the file from a copy")
    if dtype == "uint16":
        return frames[0].to_ndarray(format="gray16le")[..., None]
    return _frame_to_array(frames[0].reformat(format=_FORMATS[channels]), channels)


def decode_frame(data: bytes | None, shape: tuple[int, ...], where: str, dtype: str = "uint8") -> np.ndarray:
    """Decodes a PNG or JPEG image that must have this shape, (H, W, C): see `decode_image`."""
    image = decode_image(data, shape[2], where, dtype)
    if image.shape != shape:
        raise UserError(f"the image has the shape {image.shape} instead of {shape}", where=where,
                        hint="correct the shape in the metadata, or take the file from a copy")
    return image


def _frame_to_array(frame: av.VideoFrame, channels: int) -> np.ndarray:
    """Converts a video frame in one of _FORMATS to an array (H, W, C), without a copy."""
    plane = frame.planes[0]
    shape = frame.height, frame.width, channels
    return np.ndarray(shape, np.uint8, cast(Any, plane), strides=(plane.line_size, channels, 1))


# -- video files ----------------------------------------------------------------------------------------------------


def frame_times(path: Path) -> np.ndarray:
    """Returns the time of each frame of a file in s, (F,), in order, without decoding them.

    In a damaged file they end where it is damaged. There are none if the file cannot be read.
    """
    times = []
    with contextlib.suppress(av.FFmpegError, OSError, IndexError), \
            av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            # A file that was cut has frames before its first one, which are only decoded.
            if packet.size and packet.pts is not None and not (packet.is_corrupt or packet.is_discard):
                times.append(packet.pts * float(cast(Fraction, stream.time_base)))
    return np.sort(np.array(times, np.float64))


class VideoReader:
    """An open video file. Frames are decoded by their times.

    A window of frames costs little more than decoding the frames since the key frame before it. The packets of a small
    file stay in memory. In a larger file, a window costs one seek.

    Args:
        where: What it contains, for error messages.
        max_cached_bytes: Size in bytes up to which the packets of a file stay in memory.
    """

    def __init__(self, path: Path, where: str, max_cached_bytes: int = MAX_CACHED_BYTES):
        self.path, self._max_cached_bytes = path, max_cached_bytes
        with self._decode_errors(f"{path}, {where}"):
            self._container = av.open(str(path), metadata_errors="replace")
            self._stream = self._container.streams.video[0]
        self._decoder = self._stream.codec_context
        if self._decoder is None:  # the bytes that identify the codec are damaged
            raise UserError("the codec of the video is unknown", where=f"{path}, {where}",
                            hint="the file is damaged: take it from a copy, or leave out the episodes in it")
        self._decoder.thread_count = 1  # with more threads it decodes ahead, which is useless for random windows
        self._tick = float(cast(Fraction, self._stream.time_base))
        self._convert = VideoReformatter().reformat  # a single one, because its setup costs as much as a frame
        self._packets: list[av.Packet] | None = None  # in the order of decoding
        self._key_frames: list[int] = []  # positions of the key frames
        self._first_timestamp: list[float] = []  # and their times (s)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._packets = None
        self._container.close()

    def frames(self, times: np.ndarray, shape: tuple[int, int, int], where: str) \
            -> Iterator[tuple[list[int], np.ndarray]]:
        """Decodes the frame nearest to each time, one frame at a time.

        Args:
            times: Times in s, (n,). A frame may be at most TIMESTAMP_TOLERANCE s away.
            shape: Shape that the frames must have, (H, W, C).

        Yields:
            The rows of `times` that the frame belongs to, and the frame, uint8 (H, W, C).

        Raises:
            UserError: A time has no frame, for example in a truncated file, or the frames have another shape. The
                message names the file and the first such time.
        """
        location = f"{self.path}, {where}"
        requested_times = np.asarray(times, np.float64).tolist()
        if not requested_times:
            return
        order = sorted(range(len(requested_times)), key=requested_times.__getitem__)
        sorted_times = [requested_times[row] for row in order]
        tolerance = TIMESTAMP_TOLERANCE
        missing = set(order)
        with self._decode_errors(location):
            for frame in self._decode_from(sorted_times[0] + tolerance):
                time = cast(int, frame.pts) * self._tick
                first, last = bisect_left(sorted_times, time - tolerance), bisect_right(sorted_times, time + tolerance)
                if first < last:
                    image = _frame_to_array(self._convert(frame, format=_FORMATS[shape[2]], **_SINGLE_THREAD), shape[2])
                    if image.shape != shape:
                        raise UserError(f"the frames have shape {image.shape}, but meta/info.json says {shape}",
                                        where=location, hint="correct meta/info.json, or take the video from a copy")
                    missing.difference_update(order[first:last])
                    yield order[first:last], image
                # decoding one more frame, only to see that it is too late, would cost as much
                if time > sorted_times[-1] - tolerance:
                    break
        if missing:
            row = min(missing)
            raise UserError(
                f"there is no frame at {requested_times[row]:.4f} s (within {TIMESTAMP_TOLERANCE} s): the video "
                "ends early, or has another frame rate",
                where=f"{location}, frame {row}",
                hint="take the file from a copy, or leave out the episodes in it")

    def _decode_from(self, time: float) -> Iterator[av.VideoFrame]:
        """Yields the frames from the key frame at or before the time (s) to the end of the file."""
        if self._packets is None:
            self._read_packets()
        if self._packets:
            self._decoder.flush_buffers()
            first = self._key_frames[max(0, bisect_right(self._first_timestamp, time) - 1)]
            packets = (self._packets[i] for i in range(first, len(self._packets)))
        else:
            self._container.seek(max(0, int(time / self._tick)), stream=self._stream, backward=True)
            packets = self._container.demux(self._stream)
        for packet in packets:
            yield from self._decoder.decode(packet)

    def _read_packets(self) -> None:
        """Reads the packets of the file into memory, unless they are too many or depend on each other."""
        self._packets = []
        # before, the contents of packets are unknown
        if self._container.size > self._max_cached_bytes or _PYAV < 16:
            return
        with contextlib.suppress(av.FFmpegError):  # the part before the damage is read by seeking
            packets = list(self._container.demux(self._stream))
            keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
            if keys and not any(packet.has_sidedata("new_extradata") for packet in packets):
                self._first_timestamp = [cast(int, packets[i].pts) * self._tick for i in keys]
                self._packets, self._key_frames = packets, keys

    @contextlib.contextmanager
    def _decode_errors(self, where: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise UserError("the video file is missing", where=where, hint="take it from a copy") from None
        except (av.FFmpegError, IndexError) as error:
            raise UserError(f"the video file is damaged and cannot be decoded ({error})", where=where,
                            hint="take it from a copy, or leave out the episodes in it") from None


@functools.cache
def can_encode(codec: str, shape: tuple[int, int, int]) -> bool:
    """Returns whether an encoder of FFmpeg, "libsvtav1" or "libx264", works here for frames of shape (H, W, C)."""
    height, width, channels = shape
    if channels != 3 or height % 2 or width % 2 or min(height, width) < 16:  # smaller than a block of a codec
        return False
    with contextlib.suppress(av.FFmpegError, ValueError, OSError):
        context = av.CodecContext.create(codec, "w")
        _configure_encoder(context, codec, height, width, 10, threads=1)  # to open many threads takes up to 60 ms
        _silence_logs()
        _open_encoder(context)
        return True
    return False


def _configure_encoder(context, codec, height, width, fps, threads=None):
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate = _TICK, Fraction(fps).limit_denominator(1001)
    context.options = {"g": "2", "crf": "30", **({"bf": "0"} if codec == "libx264" else {})}
    if threads is not None:
        context.thread_count = threads
        if codec == "libsvtav1":
            # FFmpeg does not pass the number on. Looking ahead needs memory, and is useless with so many key frames.
            context.options |= {"svtav1-params": f"lp={threads}:lookahead=0:enable-tf=0"}


def _open_encoder(context) -> None:
    """Opens a video encoder with threads that have the scheduling priority of this thread."""
    # With the rights of root, SVT-AV1 makes this thread and its own real-time threads of the highest priority. Nothing
    # else on the same cores would run then, such as the control loop of a robot. It does so while it opens: 5 to 15 ms
    # with one thread.
    if sys.platform != "linux":
        context.open()
        return
    scheduling, before = (os.sched_getscheduler(0), os.sched_getparam(0)), set(os.listdir("/proc/self/task"))
    context.open()
    for thread in (set(os.listdir("/proc/self/task")) - before) | {"0"}:
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setscheduler(int(thread), *scheduling)


def _silence_logs():
    os.environ.setdefault("SVT_LOG", "1")  # its own log, which libav's log level does not control: errors only


class VideoWriter:
    """Writes one MP4 file. Every second frame is a key frame, so that decoding can start near any frame.

    Args:
        codec: Name of the encoder in FFmpeg: "libsvtav1" (AV1) or "libx264" (H.264).
        shape: Shape of the frames, (H, W, 3).
        fps: Nominal frames per second.
        threads: Number of threads that encode. By default the codec chooses, about as many as there are processors. AV1
            starts more threads, but most of them only wait.
    """

    def __init__(self, path: Path, codec: str, shape: tuple[int, int, int], fps: float, threads: int | None = None):
        _silence_logs()
        self._container = av.open(str(path), "w", format="mp4")
        stream = self._container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        self._stream = cast(av.VideoStream, stream)
        _configure_encoder(self._stream.codec_context, codec, shape[0], shape[1], fps, threads)
        self._stream.time_base = _TICK
        _open_encoder(self._stream.codec_context)
        self._convert = VideoReformatter().reformat
        self.bytes = 0  # written so far

    def add(self, frames: Iterable[np.ndarray], times: Iterable[float]) -> None:
        """Adds frames, uint8 (H, W, 3) each, with their times in s, which increase from call to call."""
        for frame, time in zip(frames, times, strict=True):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            image = self._convert(image, format="yuv420p", **_SINGLE_THREAD)
            image.pts, image.time_base = round(time * _TICKS), _TICK
            self._encode(image)

    def close(self) -> None:
        """Writes the remaining frames and closes the file."""
        self._encode(None)
        self._container.close()

    def abort(self) -> None:
        """Closes a video file that is incomplete, and which is therefore unusable."""
        with contextlib.suppress(av.FFmpegError, ValueError, OSError):
            self.close()

    def _encode(self, image: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(image):
            self.bytes += packet.size
            self._container.mux(packet)
