"""Driver of Dynamixel servos of the X series (Koch arms, ALOHA), through the package dynamixel-sdk."""

from __future__ import annotations

from .base import RobotError
from .motors_bus import MotorsBus
from .registers import DYNAMIXEL

ERRORS = {1: "the instruction failed", 2: "unknown instruction", 3: "wrong checksum", 4: "value out of range",
          5: "wrong length", 6: "value beyond a limit", 7: "register is read-only or locked"}


class DynamixelMotorsBus(MotorsBus):
    """Dynamixel servos on a serial line, with protocol 2.0."""

    name, module, registers = "dynamixel", "dynamixel_sdk", DYNAMIXEL
    address_bytes, status_bytes = 2, 11

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
