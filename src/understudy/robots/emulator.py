"""Emulated servos behind a pseudo-terminal, for tests and for trying commands without hardware.

A program opens the port as it would open a USB adapter. The emulator parses instruction packets of the real protocols,
checks their checksums, keeps a control table for each servo, moves the shaft with limited speed, and answers with
status packets. Faults are injected on purpose: lost, late, damaged and split packets, error bits, a pulled cable.

References:
    Feetech, Communication protocol of magnetic encoded servos (STS/SMS series).
    ROBOTIS e-Manual, DYNAMIXEL Protocol 2.0.
"""

from __future__ import annotations

import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .registers import DYNAMIXEL, FEETECH, MODEL_NUMBERS, Register

if TYPE_CHECKING:
    from .servo_arm import ServoArmType

BROADCAST = 254
PING, READ, WRITE, SYNC_READ, SYNC_WRITE, STATUS = 1, 2, 3, 0x82, 0x83, 0x55
TURN = 4096  # steps


@dataclass
class Faults:
    """Faults that an emulated serial line makes. Fractions are of status packets.

    Args:
        missing: Fraction that never arrives.
        damaged: Fraction in which one bit is flipped.
        late: Fraction that arrives `delay` later.
        split: Fraction that arrives in two parts, `gap` apart.
        noise: Fraction before which random bytes arrive.
        delay: Delay of late packets (s).
        gap: Pause within split packets (s).
    """

    missing: float = 0.0
    damaged: float = 0.0
    late: float = 0.0
    split: float = 0.0
    noise: float = 0.0
    delay: float = 0.05
    gap: float = 0.002
    seed: int = 0

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def parts(self, packet: bytes) -> Iterator[tuple[float, bytes]]:
        """Yields what arrives instead of a packet: pairs of a pause (s) and bytes."""
        is_lost, is_damaged, is_late, is_split, is_noisy = self.rng.random(5) < (
            self.missing, self.damaged, self.late, self.split, self.noise)
        if is_lost:
            return
        if is_noisy:
            yield 0.0, self.rng.bytes(int(self.rng.integers(1, 8)))
        if is_damaged:
            bit = int(self.rng.integers(8 * len(packet)))
            packet = bytes(b ^ (1 << bit % 8 if i == bit // 8 else 0) for i, b in enumerate(packet))
        pause = self.delay if is_late else 0.0
        if is_split and len(packet) > 1:
            cut = int(self.rng.integers(1, len(packet)))
            yield pause, packet[:cut]
            pause, packet = self.gap, packet[cut:]
        yield pause, packet


@dataclass
class EmulatedServo(ABC):
    """An emulated servo, with its control table and its shaft.

    Args:
        number: Its id on the bus.
        position: Position of the shaft when it was switched on (steps of 1/4096 turn, before the homing offset).
        velocity: Largest velocity of the shaft (steps/s).
        registers: The registers that the emulator itself uses, by name.

    Attributes:
        fault: Error bits that every status packet carries.
        writes: Every write as (time, address, data).
    """

    number: int
    model: int
    position: float
    velocity: float
    registers: Mapping[str, Register]
    defaults: Mapping[str, int] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    fault: int = 0

    def __post_init__(self):
        self.memory = bytearray(256)
        self.writes: list[tuple[float, int, bytes]] = []
        self._at = self.clock()
        for name, value in {**self.defaults, "Model_Number": self.model, "ID": self.number}.items():
            self.set(name, value)

    def get(self, name: str) -> int:
        r = self.registers[name]
        return r.decode(bytes(self.memory[r.address:r.address + r.size]))

    def set(self, name: str, value: int) -> None:
        r = self.registers[name]
        self.memory[r.address:r.address + r.size] = r.encode(value)

    def push(self, position: float) -> None:
        """Turns the shaft of the emulated servo, as a hand would that pushes the arm."""
        self.update()
        self.position = position

    @abstractmethod
    def update(self) -> None:
        """Moves the shaft up to the present time, and sets the registers that are measured."""

    @abstractmethod
    def write(self, address: int, data: bytes) -> int:
        """Writes into the control table. Returns the error of the status packet."""


class FeetechServo(EmulatedServo):
    """Emulated STS3215 servo of Feetech. Present_Position = position - Homing_Offset."""

    EEPROM = range(5, 40)
    READ_ONLY = (*range(5), *range(56, 71))

    def __init__(self, number: int, position: float = 2048, clock: Callable[[], float] = time.monotonic):
        super().__init__(number, MODEL_NUMBERS["sts3215"], position, 3000.0, FEETECH,
                         {"Firmware_Major_Version": 3, "Firmware_Minor_Version": 10, "Max_Position_Limit": TURN - 1,
                          "Return_Delay_Time": 250, "Response_Status_Level": 1, "Max_Torque_Limit": 1000,
                          "P_Coefficient": 32, "D_Coefficient": 32, "Torque_Limit": 1000, "Present_Voltage": 74,
                          "Present_Temperature": 30, "Goal_Position": int(position)}, clock)

    def update(self):
        now = self.clock()
        elapsed, self._at = now - self._at, now
        offset = self.get("Homing_Offset")
        load = 0
        if self.get("Torque_Enable"):
            limited = self.get("Goal_Velocity") or self.velocity
            low, high = self.get("Min_Position_Limit"), self.get("Max_Position_Limit")
            goal = self.get("Goal_Position")
            goal = min(max(goal, low), high) if high > low else goal
            gap = goal - (self.position - offset)
            load = int(min(abs(gap), self.get("Torque_Limit")))
            self.position += np.clip(gap, -limited * elapsed, limited * elapsed)
        self.set("Present_Position", round(self.position - offset) % TURN)
        self.set("Present_Load", load)

    def write(self, address, data):
        self.update()
        self.writes.append((self.clock(), address, data))
        locked = self.get("Lock")
        for i, byte in enumerate(data, address):
            if i not in self.READ_ONLY and not (locked and i in self.EEPROM):
                self.memory[i] = byte
        if not locked:
            self.number = self.get("ID")
        self.update()
        return 0


class DynamixelServo(EmulatedServo):
    """Emulated Dynamixel X servo. Present_Position = position + Homing_Offset. EEPROM is locked while torque is on."""

    EEPROM = range(64)
    READ_ONLY = (*range(7), 70, *range(120, 148))
    ACCESS = 7

    def __init__(self, number: int, model: str = "xl330-m288", position: float = 2048,
                 clock: Callable[[], float] = time.monotonic):
        super().__init__(number, MODEL_NUMBERS[model], position, 3000.0, DYNAMIXEL,
                         {"Firmware_Version": 52, "Baud_Rate": 1, "Return_Delay_Time": 250, "Operating_Mode": 3,
                          "Max_Position_Limit": TURN - 1, "PWM_Limit": 885, "Goal_PWM": 885, "Velocity_Limit": 445,
                          "Current_Limit": 1750, "Secondary_ID": 255, "Status_Return_Level": 2, "Position_P_Gain": 800,
                          "Present_Input_Voltage": 50, "Present_Temperature": 30, "Goal_Position": int(position)},
                         clock)

    def update(self):
        now = self.clock()
        elapsed, self._at = now - self._at, now
        offset, sign = self.get("Homing_Offset"), -1 if self.get("Drive_Mode") & 1 else 1
        load = 0
        if self.get("Torque_Enable"):
            profile = self.get("Profile_Velocity") * 0.229 / 60 * TURN  # 0: without limit
            limited = min(profile or self.velocity, self.velocity)
            gap = self.get("Goal_Position") - (sign * self.position + offset)
            load = int(np.sign(gap) * min(abs(gap), self.get("Goal_PWM")))
            self.position += sign * np.clip(gap, -limited * elapsed, limited * elapsed)
        present = round(sign * self.position + offset)
        if not self.get("Torque_Enable") and self.get("Operating_Mode") == 3:
            present %= TURN
        self.set("Present_Position", present)
        self.set("Present_Current", load)

    def write(self, address, data):
        self.update()
        self.writes.append((self.clock(), address, data))
        places = range(address, address + len(data))
        if any(i in self.READ_ONLY for i in places) or (self.get("Torque_Enable") and places[0] in self.EEPROM):
            return self.ACCESS
        goal = self.registers["Goal_Position"]
        if address == goal.address and self.get("Operating_Mode") == 3 and not (
                self.get("Min_Position_Limit") <= goal.decode(data[:4]) <= self.get("Max_Position_Limit")):
            return 6  # data limit error
        before = self.get("Torque_Enable")
        self.memory[address:address + len(data)] = data
        if self.get("Torque_Enable") and not before:
            self.set("Goal_Position", self.get("Present_Position"))  # no jump when the torque is switched on
            if goal.address in places:
                self.memory[address:address + len(data)] = data
        self.number = self.get("ID")
        self.update()
        return 0


# The inner ends of terminals that were closed. While they are open, the system gives the path of the terminal to no
# other, which a `TorqueGuard` that waits for the lost one would release.
_RESERVED: deque[int] = deque()
MAX_RESERVED = 32


class EmulatedBus(ABC):
    """Emulated servos on one serial line. A context manager: `port` is the path of the pseudo-terminal.

    Attributes:
        port: Path to open.
        rejected: Number of instruction packets with a wrong checksum.
        instructions: Number of valid instruction packets.
        mirrored: Second servos, mounted the other way round on a joint. Maps the id of each to the id of the joint's
            first servo.
        lock: Held while packets are answered.
    """

    header: bytes  # of a packet
    width: int  # bytes of a length, an address and a checksum
    lengths: range  # of valid packets
    invalid_ids: tuple[int, ...]

    def __init__(self, *servos: EmulatedServo, faults: Faults | None = None):
        self.servos, self.faults = list(servos), faults or Faults()
        self.port, self.rejected, self.instructions = "", 0, 0
        self.mirrored: dict[int, int] = {}
        self._fd = -1
        self._buffer = b""
        self.lock = threading.RLock()

    def __enter__(self):
        import pty
        import tty

        self._fd, inner = pty.openpty()
        tty.setraw(inner)  # no echo, and every byte as it is
        self.port = os.ttyname(inner)
        self._inner = inner  # kept open, so that the port survives its clients
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="emulated bus", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.pull_cable()

    def pull_cable(self) -> None:
        """Ends the emulated connection, as a pulled USB cable does."""
        if self._fd >= 0:
            self._ended.set()
            self._thread.join()
            os.close(self._fd)
            self._fd = -1
            _RESERVED.append(self._inner)
            if len(_RESERVED) > MAX_RESERVED:
                os.close(_RESERVED.popleft())

    def servo(self, number: int) -> EmulatedServo:
        """Returns the emulated servo with this id."""
        return next(s for s in self.servos if s.number == number)

    def _serve(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._fd], [], [], 0.02)[0]:
                continue
            try:
                self._buffer += os.read(self._fd, 4096)
            except OSError:
                return
            with self.lock:
                self._answer()

    def _answer(self) -> None:
        while (request := self._next_packet()) is not None:
            number, instruction, data = request
            self.instructions += 1
            for packet in self._execute(number, instruction, data):
                for pause, part in self.faults.parts(packet):
                    if pause:
                        time.sleep(pause)
                    with suppress(OSError):
                        os.write(self._fd, part)

    def _addressed(self, number: int) -> list[EmulatedServo]:
        return [s for s in self.servos if number in (s.number, BROADCAST)]

    def _next_packet(self) -> tuple[int, int, bytes] | None:
        """Removes the next valid packet from the buffer: id, instruction and parameters."""
        at = len(self.header)  # of the id, after which come the length and what it counts
        first = at + 1 + self.width
        while (start := self._buffer.find(self.header)) >= 0:
            self._buffer = self._buffer[start:]
            if len(self._buffer) < first:
                return None
            length = int.from_bytes(self._buffer[at + 1:first], "little")
            if length in self.lengths and self._buffer[at] not in self.invalid_ids:
                packet = self._buffer[:first + length]
                if len(packet) < first + length:
                    return None
                if self._checksum(packet[:-self.width]) == packet[-self.width:]:
                    self._buffer = self._buffer[len(packet):]
                    body = self._instruction_body(packet[first:-self.width])
                    return packet[at], body[0], body[1:]
                self.rejected += 1
            self._buffer = self._buffer[1:]
        self._buffer = self._buffer[1 - at:]
        return None

    def _execute(self, number: int, instruction: int, data: bytes) -> Iterator[bytes]:
        """Executes an instruction. Yields the status packets."""
        address, size = (int.from_bytes(data[i:i + self.width], "little") for i in (0, self.width))
        each = data[2 * self.width:]
        if instruction == SYNC_WRITE:
            for i in range(0, len(each) - size, size + 1):
                for servo in self._addressed(each[i]):
                    servo.write(address, each[i + 1:i + 1 + size])
        elif instruction == SYNC_READ:
            for single in each:
                yield from self._execute(single, READ, data[:2 * self.width])
        else:
            for servo in self._addressed(number):
                before, answers = servo.number, servo.number == number
                servo.update()
                if instruction == PING and (answers or number == BROADCAST):
                    yield self._status(before, servo, 0, self._ping_reply(servo))
                elif instruction == READ and answers:
                    yield self._status(before, servo, 0, bytes(servo.memory[address:address + size]))
                elif instruction == WRITE:
                    error = servo.write(address, data[self.width:])
                    if answers:
                        yield self._status(before, servo, error)

    def _status(self, number: int, servo: EmulatedServo, error: int = 0, data: bytes = b"") -> bytes:
        """Builds the status packet with which a servo answers, under the id that was asked."""
        body = self._status_body(servo, error, data)
        packet = self.header + bytes([number]) + (len(body) + self.width).to_bytes(self.width, "little") + body
        return packet + self._checksum(packet)

    @abstractmethod
    def _checksum(self, packet: bytes) -> bytes:
        """Returns the checksum of a packet that has none yet."""

    def _instruction_body(self, body: bytes) -> bytes:
        """Parses instruction and parameters from the bytes that follow the length in a packet."""
        return body

    @abstractmethod
    def _status_body(self, servo: EmulatedServo, error: int, data: bytes) -> bytes:
        """Builds the bytes that follow the length in a status packet: error and data."""

    @abstractmethod
    def _ping_reply(self, servo: EmulatedServo) -> bytes: ...


class EmulatedFeetechBus(EmulatedBus):
    """Emulated servos with Feetech's protocol: FF FF ID LENGTH INSTRUCTION PARAMETERS... CHECKSUM.

    Addresses have one byte.
    """

    header, width, lengths, invalid_ids = b"\xff\xff", 1, range(2, 251), (0xFF,)

    def _checksum(self, packet):
        return bytes([~sum(packet[2:]) & 0xFF])

    def _status_body(self, servo, error, data):
        return bytes([servo.fault | error]) + data

    def _ping_reply(self, servo):
        return b""


def crc16(data: bytes) -> int:
    """Computes the CRC-16 (polynomial 0x8005, initially 0, not reflected) of Dynamixel protocol 2.0."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x8005 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


class EmulatedDynamixelBus(EmulatedBus):
    """Emulated servos with Dynamixel protocol 2.0: FF FF FD 00 ID LENGTH(2) INSTRUCTION PARAMETERS... CRC(2).

    FF FF FD inside a packet is followed by a stuffed FD.
    """

    header, width, lengths, invalid_ids = b"\xff\xff\xfd\x00", 2, range(3, 1025), (0xFD, 0xFF)

    def _addressed(self, number):
        """Returns the servos that execute an instruction for an id: also those with it as Secondary_ID."""
        return [s for s in self.servos if number in (s.number, BROADCAST) or number == s.get("Secondary_ID") < 253]

    def _checksum(self, packet):
        return crc16(packet).to_bytes(2, "little")

    def _instruction_body(self, body):
        return body.replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")

    def _status_body(self, servo, error, data):
        body = bytes([STATUS, error | (0x80 if servo.fault else 0)]) + data
        return body.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")

    def _ping_reply(self, servo):
        return bytes(servo.memory[:2]) + bytes([servo.get("Firmware_Version")])


def emulate_arm(kind: ServoArmType, faults: Faults | None = None) -> EmulatedBus:
    """Returns the emulated servos of an arm, in the middle of their turn."""
    if kind.is_feetech:
        return EmulatedFeetechBus(*(FeetechServo(m.id) for m in kind.servos.values()), faults=faults)
    servos = (DynamixelServo(m.id, m.model) for m in kind.servos.values())
    bus = EmulatedDynamixelBus(*servos, faults=faults)
    bus.mirrored = {second.id: kind.motors[first].id for first, second in kind.shadows.values()}
    return bus


def wave(bus: EmulatedBus, seconds: float) -> None:
    """Moves all joints without torque around half a turn, as a hand would.

    Args:
        seconds: Time since the beginning (s).
    """
    with bus.lock:
        for servo in bus.servos:
            if not servo.get("Torque_Enable"):
                joint = bus.mirrored.get(servo.number, servo.number)
                way = 800 * np.sin(seconds * (0.5 + 0.1 * joint))
                servo.push(TURN / 2 + (way if joint == servo.number else -way))
