"""Dynamixel servos of the X series (Koch arms, ALOHA), through the package dynamixel-sdk."""

from __future__ import annotations

import struct

from .base import RobotError
from .motors_bus import MotorsBus
from .registers import DYNAMIXEL

_READ, _WRITE, _SYNC_READ, _SYNC_WRITE, _BROADCAST = 2, 3, 0x82, 0x83, 254
ERRORS = {1: "the instruction failed", 2: "unknown instruction", 3: "wrong checksum", 4: "value out of range",
          5: "wrong length", 6: "value beyond a limit", 7: "register is read-only or locked"}


class DynamixelMotorsBus(MotorsBus):
    """Dynamixel servos on a serial line, with protocol 2.0."""

    name, module, registers = "dynamixel", "dynamixel_sdk", DYNAMIXEL

    def _packet_handler(self, sdk):
        from dynamixel_sdk.protocol2_packet_handler import Protocol2PacketHandler

        class Handler(Protocol2PacketHandler):
            def addStuffing(self, packet):  # noqa: N802 a method of the SDK, whose caller ignores the longer packet
                packet[:] = super().addStuffing(packet)
                return packet

        # since 4.0 packets may be received in a fast mode
        self._receive_options = (False,) if "fastSyncRead" in vars(sdk.GroupSyncRead) else ()
        return Handler()

    def _packet(self, number, instruction, parameters):
        length = len(parameters) + 3
        return [0, 0, 0, 0, number, length & 255, length >> 8, instruction, *parameters, 0, 0]

    def _read_packet(self, number, address, size):
        return self._packet(number, _READ, struct.pack("<HH", address, size))

    def _write_packet(self, number, address, data):
        return self._packet(number, _WRITE, struct.pack("<H", address) + data)

    def _sync_read_packet(self, address, size, numbers):
        return self._packet(_BROADCAST, _SYNC_READ, struct.pack("<HH", address, size) + bytes(numbers))

    def _sync_write_packet(self, address, size, data):
        return self._packet(_BROADCAST, _SYNC_WRITE, struct.pack("<HH", address, size) + data)

    def _receive(self):
        return self._packets.rxPacket(self._port, *self._receive_options)

    def _status_length(self, size):
        return 11 + size

    def _split(self, packet):
        length = packet[5] | packet[6] << 8  # without the stuffing, which the packet may still have at its end
        return packet[4], packet[8], bytes(packet[9:length + 5])

    def _check_error(self, number, error):
        if error:
            problem = "a hardware error (overload, overheating, or voltage)" if error & 0x80 else ERRORS.get(
                error, f"error {error}")
            raise RobotError(f"the servo reports: {problem}", where=f"{self.port_name}, {self._motor_name(number)}",
                             hint="let it cool down or free it, then reboot it by switching its power off and on"
                             if error & 0x80 else "this is a wrong setting: calibrate the robot again")
