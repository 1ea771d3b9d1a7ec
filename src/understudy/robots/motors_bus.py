"""Servos on a serial line, through the packet handlers of the manufacturers' SDKs.

The SDKs frame packets and check them. What they leave open is decided here: bytes of an older reply are removed before
a request, a reply must come from the servo that was asked and have the length that was asked for, error bits are read,
requests are repeated, and a line with late replies is silent before it is used again.
"""

from __future__ import annotations

import importlib
import math
import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..core import ConfigError, UserError
from .base import ConnectionLost, RobotError
from .registers import MODEL_NUMBERS, Register

try:
    import termios

    # pyserial's errors are OSErrors, a closed port is a TypeError, and termios.error is not an OSError
    _LINE_ERRORS: tuple[type[Exception], ...] = (OSError, TypeError, termios.error)
except ImportError:  # Windows
    _LINE_ERRORS = (OSError, TypeError)

N_RETRIES = 10  # with 2 % lost packets, none of 20,000 observations of six servos needed more than 5
RETRY_SECONDS = 0.3  # longest time of the repetitions of a request, less than the timeout of a robot
UNTIMED_RETRIES = 3  # that do not end by time: a busy computer can take all of it for one
_READ, _WRITE, _SYNC_READ, _SYNC_WRITE, _BROADCAST = 2, 3, 0x82, 0x83, 254
QUIET_SECONDS = 0.02  # the line must be silent for so long before it is used again after a missing reply


@dataclass(frozen=True)
class Motor:
    """A servo of an arm.

    Args:
        model: Its model, such as "sts3215".
        range: Unit of its positions: "degrees" around the middle of its calibrated range, or "percent" of this range
            (0 to 100).
    """

    id: int
    model: str
    range: str = "degrees"


class MotorsBus(ABC):
    """A serial line with servos, and how to read and write their registers.

    Values are the contents of the registers, with their sign. All methods may be called from several threads.

    Args:
        port: Path or name of the serial port.
        baudrate: Bits per second.
        reply_timeout: Longest wait for a status packet (s), besides the time of its bytes on the line.
        n_retries: Largest number of times that a request is repeated.
        retry_seconds: Time (s) since the first missing reply after which a request is not repeated a fourth time.
    """

    name: str  # of the manufacturer, as in BAUD_RATES, and of the extra
    module: str  # of the SDK
    registers: Mapping[str, Register]
    address_bytes: int  # of an address or a size in a packet
    status_bytes: int  # of a status packet without data
    resolution = 4096  # steps of a turn

    def __init__(self, port: str, motors: Mapping[str, Motor], baudrate: int = 1_000_000, reply_timeout: float = 0.02,
                 n_retries: int = N_RETRIES, retry_seconds: float = RETRY_SECONDS):
        self.port_name, self.motors = port, dict(motors)
        self.baudrate, self.reply_timeout = baudrate, reply_timeout
        self.n_retries, self.retry_seconds = n_retries, retry_seconds
        self.errors: dict[str, int] = {}  # error bits of the last reply of each servo
        self.n_repeated = 0  # requests that were repeated so far
        self._port: Any = None
        self._packets: Any = None
        self._receive_options: tuple[Any, ...] = ()
        self._lock = threading.RLock()

    # -- the line ----------------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self._port is not None

    def connect(self, check: bool = True) -> None:
        """Opens the port. If it is open, it is closed first.

        Args:
            check: Whether every servo must answer and be of its model, and no other program may use the port.

        Raises:
            ConnectionLost: The port cannot be opened, or a servo does not answer.
            RobotError: A servo is of another model.
        """
        sdk = self._sdk()
        self.disconnect()
        port = _make_port(sdk, self.port_name, self.baudrate, self.reply_timeout)
        try:
            opened = port.openPort()
            if opened and check:
                port.ser.exclusive = True
        except (*_LINE_ERRORS, ValueError) as error:
            raise ConnectionLost(f"the port cannot be opened: {error}", where=self.port_name,
                                 hint="end other programs that use it. understudy robot find-port finds its name. You "
                                      "may need the right to use it (group dialout)") from None
        if not opened:
            raise ConfigError(f"{self.baudrate} bits per second are not possible", where=self.port_name,
                              hint="such as 1000000")
        self._port, self._packets = port, self._packet_handler(sdk)
        try:
            if check:
                self.check_motors()
        except BaseException:
            self.disconnect()
            raise

    @contextmanager
    def connected(self, check: bool = True) -> Iterator[None]:
        """Opens the port while its body runs, so that servos can be asked. A context manager."""
        self.connect(check)
        try:
            yield
        finally:
            self.disconnect()

    def disconnect(self) -> None:
        with self._lock:
            port, self._port = self._port, None
            if port is not None:
                with suppress(*_LINE_ERRORS):
                    port.closePort()

    def check_motors(self) -> None:
        """Raises an error that names the servos which do not answer or are of another model."""
        models = {name: self.ping(m.id) for name, m in self.motors.items()}
        if missing := [f"{name} (id {self.motors[name].id})" for name, model in models.items() if model is None]:
            raise ConnectionLost(f"no answer from {', '.join(missing)}", where=self.port_name,
                                 hint="check the power and the cables. understudy robot setup gives servos their ids")
        for name, model in models.items():
            if model != (expected_model := MODEL_NUMBERS[self.motors[name].model]):
                model_name = {n: m for m, n in MODEL_NUMBERS.items()}.get(model or 0, f"model number {model}")
                raise RobotError(f"it is {model_name}, and {self.motors[name].model} ({expected_model}) was expected",
                                 where=f"{self.port_name}, {name} (id {self.motors[name].id})",
                                 hint="name the type of this robot, and check which servo has which id")

    def ping(self, number: int, n_retries: int | None = None) -> int | None:
        """Returns the model number of the servo with this id. None if there is no answer."""
        r = self.registers["Model_Number"]
        try:
            return r.decode(self._read(number, r, self.n_retries if n_retries is None else n_retries))
        except ConnectionLost:
            if self._port is None:
                raise
            return None

    def scan(self, numbers: Iterable[int] = range(21)) -> dict[int, int]:
        """Returns the ids that answer, with their model numbers."""
        return {number: model for number in numbers if (model := self.ping(number, 0)) is not None}

    # -- values ------------------------------------------------------------------------------------------------------

    def read(self, register: str, motor: str) -> int:
        """Reads a register of one servo."""
        r = self.registers[register]
        return r.decode(self._read(self.motors[motor].id, r, self.n_retries, motor))

    def write(self, register: str, motor: str, value: int) -> None:
        """Sets a register of one servo, which confirms it."""
        r, number = self.registers[register], self.motors[motor].id
        packet = self._packet(number, _WRITE, self._fields(r.address) + r.encode(value))
        self._request(packet, [(number, 0)], self.n_retries, f"{motor} (id {number})")

    def sync_read(self, registers: Sequence[str], motors: Sequence[str] | None = None) -> dict[str, tuple[int, ...]]:
        """Reads registers of several servos, in one request.

        Args:
            registers: Names of registers. All bytes between them are read too.
            motors: Names of servos. None for all.

        Returns:
            The values of the registers, in the given order, by the name of the servo.
        """
        names, layouts = list(self.motors if motors is None else motors), [self.registers[r] for r in registers]
        first = min(r.address for r in layouts)
        size = max(r.address + r.size for r in layouts) - first
        ids = [self.motors[n].id for n in names]
        packet = self._packet(_BROADCAST, _SYNC_READ, self._fields(first, size) + bytes(ids))
        replies = self._request(packet, [(i, size) for i in ids], self.n_retries, "the servos")
        return {n: tuple(r.decode(data[r.address - first:r.address - first + r.size]) for r in layouts)
                for n, data in zip(names, replies, strict=True)}

    def positions(self, motors: Sequence[str] | None = None) -> dict[str, int]:
        """Reads the measured positions of several servos (steps). None for all servos."""
        return {name: steps for name, (steps,) in self.sync_read(["Present_Position"], motors).items()}

    def sync_write(self, register: str, values: Mapping[str, int]) -> None:
        """Sets a register of several servos in one packet, which nobody confirms."""
        self._request(self._sync_write(register, values), [], 0, "the servos")

    def sync_write_packet(self, register: str, values: Mapping[str, int]) -> bytes:
        """Returns the bytes that `sync_write` sends. The port must be open."""
        line = _PacketLine()
        self._packets.txPacket(line, self._sync_write(register, values))
        return line.packet

    def _sync_write(self, register: str, values: Mapping[str, int]) -> list[int]:
        r = self.registers[register]
        parts = b"".join(bytes([self.motors[n].id]) + r.encode(v) for n, v in values.items())
        return self._packet(_BROADCAST, _SYNC_WRITE, self._fields(r.address, r.size) + parts)

    # -- packets -----------------------------------------------------------------------------------------------------

    def _read(self, number: int, r: Register, n_retries: int, motor: str = "") -> bytes:
        who = f"{motor} (id {number})" if motor else f"id {number}"
        packet = self._packet(number, _READ, self._fields(r.address, r.size))
        return self._request(packet, [(number, r.size)], n_retries, who)[0]

    def _fields(self, *numbers: int) -> bytes:
        """Returns addresses and sizes as they are written in a packet."""
        return b"".join(n.to_bytes(self.address_bytes, "little") for n in numbers)

    def _request(self, packet: list[int], replies: list[tuple[int, int]], n_retries: int, who: str) -> list[bytes]:
        """Sends a packet, and receives a status packet from each (id, number of bytes) in order."""
        problem, attempt, ends = "", 0, math.inf
        with self._lock:
            while True:
                if self._port is None:
                    raise ConnectionLost("the port is closed", where=self.port_name, hint="connect again")
                try:
                    return self._exchange(list(packet), replies)
                except _NoReply as error:
                    problem = str(error)
                    ends = min(ends, time.monotonic() + self.retry_seconds)
                    self._wait_until_quiet()
                    if attempt >= n_retries or attempt >= UNTIMED_RETRIES and time.monotonic() > ends:
                        break
                    attempt += 1
                    self.n_repeated += 1
                except _LINE_ERRORS as error:
                    self.disconnect()
                    raise ConnectionLost(f"the connection is gone: {error}", where=self.port_name,
                                         hint="plug the cable in, and connect again") from None
            repeated = f", after {attempt + 1} requests" if attempt else ""
            raise ConnectionLost(f"{who}: {problem}{repeated}", where=self.port_name,
                                 hint="check the power, the cables and the baud rate")

    def _exchange(self, packet: list[int], replies: list[tuple[int, int]]) -> list[bytes]:
        port, packets = self._port, self._packets
        port.is_using = False
        if (result := packets.txPacket(port, packet)) != 0:
            raise _NoReply(packets.getTxRxResult(result))
        port.is_using = False
        port.setPacketTimeout(sum(self.status_bytes + size for _, size in replies))
        payloads, errors = [], []
        for number, size in replies:
            received, result = packets.rxPacket(port, *self._receive_options)
            if result != 0:
                raise _NoReply("no reply" if not received else "a damaged or incomplete reply")
            sender, error, data = self._split(received)
            if sender != number or len(data) != size:
                raise _NoReply(f"a reply of id {sender} with {len(data)} bytes, not of id {number} with {size}")
            self.errors[self._motor_name(number)] = error
            errors.append(error)
            payloads.append(data)
        for (number, _), error in zip(replies, errors, strict=True):  # when all have been received
            self._check_error(number, error)
        return payloads

    def _motor_name(self, number: int) -> str:
        return next((n for n, m in self.motors.items() if m.id == number), f"id {number}")

    def _wait_until_quiet(self) -> None:
        """Drops what still arrives, so that a late reply is not taken for the reply to the next request."""
        try:
            ends = time.monotonic() + 10 * QUIET_SECONDS
            last = time.monotonic()
            while (now := time.monotonic()) < ends and now - last < QUIET_SECONDS:
                if self._port.ser.in_waiting:
                    self._port.ser.reset_input_buffer()
                    last = now
                time.sleep(0.001)
        except _LINE_ERRORS:
            pass  # the next request reports it

    def _sdk(self) -> ModuleType:
        try:
            return importlib.import_module(self.module)
        except ImportError:
            raise UserError(f"the driver {self.module} is not installed", where=f"{self.name} servos",
                            hint=f"pip install 'understudy[{self.name}]'") from None

    @abstractmethod
    def _packet_handler(self, sdk: ModuleType) -> Any: ...

    @abstractmethod
    def _packet(self, number: int, instruction: int, parameters: bytes) -> list[int]:
        """Builds an instruction packet, without what the SDK fills in."""

    @abstractmethod
    def _split(self, packet: list[int]) -> tuple[int, int, bytes]:
        """Splits a status packet into id, error byte and data."""

    @abstractmethod
    def _check_error(self, number: int, error: int) -> None:
        """Raises RobotError for error bits that must stop the robot."""


class _NoReply(Exception):
    """Raised when a request got no valid reply."""


class _PacketLine:
    """A port that only keeps the packet that an SDK writes."""

    is_using, packet = False, b""

    def clearPort(self) -> None:  # noqa: N802 a method of the SDK
        pass

    def writePort(self, packet: list[int]) -> int:  # noqa: N802
        self.packet = bytes(packet)
        return len(packet)


def _make_port(sdk: ModuleType, name: str, baudrate: int, reply_timeout: float) -> Any:
    """Builds the SDK's port, not yet open. It drops old bytes before a request, and waits without busy polling."""

    class Port(sdk.PortHandler):
        def clearPort(self):  # noqa: N802 a method of the SDK
            self.ser.reset_input_buffer()

        def setPacketTimeout(self, packet_length):  # noqa: N802
            self.setPacketTimeoutMillis(self.tx_time_per_byte * packet_length + 1000 * reply_timeout)

        def readPort(self, length):  # noqa: N802
            if os.name == "posix" and not self.ser.in_waiting:
                timeout = (self.packet_timeout - self.getTimeSinceStart()) / 1000
                if timeout > 0:
                    select.select([self.ser.fileno()], [], [], timeout)
            return self.ser.read(length)

    port = Port(name)
    port.baudrate = baudrate
    return port
