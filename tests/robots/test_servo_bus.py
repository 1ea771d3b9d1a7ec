"""The drivers against emulated servos that speak the real protocols behind a pseudo-terminal."""

import time

import numpy as np
import pytest
from fixtures.waiting import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import ConfigError, UserError
from understudy.robots.base import ConnectionLost, RobotError
from understudy.robots.dynamixel import DynamixelMotorsBus
from understudy.robots.emulator import (
    DynamixelServo,
    EmulatedDynamixelBus,
    EmulatedFeetechBus,
    Faults,
    FeetechServo,
    crc16,
    emulate_arm,
)
from understudy.robots.feetech import FeetechMotorsBus
from understudy.robots.motors_bus import Motor
from understudy.robots.registers import DYNAMIXEL, FEETECH, Register
from understudy.robots.servo_arm import ARM_TYPES

scs = pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
dxl = pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")

KINDS = {"feetech": (EmulatedFeetechBus, FeetechServo, FeetechMotorsBus, "sts3215"),
         "dynamixel": (EmulatedDynamixelBus, DynamixelServo, DynamixelMotorsBus, "xl330-m288")}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def line(kind, *positions, faults=None, n_retries=2, reply_timeout=0.5):
    """An emulated bus with servos 1, 2, ... at these positions, and the driver of it."""
    bus, servo, driver, model = kind
    emulated = bus(*(servo(i, position=p) for i, p in enumerate(positions, 1)), faults=faults)
    return emulated, lambda: driver(emulated.port, {f"j{i}": Motor(i, model) for i in range(1, len(positions) + 1)},
                                    reply_timeout=reply_timeout, n_retries=n_retries)


# -- the emulator is right: the manufacturers' SDKs understand it, and published packets are reproduced -------------


def test_checksums_are_those_of_the_manuals():
    # ROBOTIS e-Manual, Protocol 2.0: ping of id 1, and the status packet of an XM430-W210 (model number 1030)
    for packet, crc in (("FFFFFD0001030001", "194E"), ("FFFFFD000107005500060426", "655D")):
        assert crc16(bytes.fromhex(packet)).to_bytes(2, "little") == bytes.fromhex(crc)
    emulated = EmulatedFeetechBus(FeetechServo(1))
    assert emulated._status(1, emulated.servos[0]) == bytes.fromhex("FFFF010200FC")  # the manual's reply to a ping


@pytest.fixture
def patient_sdk(monkeypatch):
    """The SDKs wait for 34 ms. A pseudo-terminal takes seconds while the kernel writes much to a disk."""
    for sdk in ("scservo_sdk", "dynamixel_sdk"):
        monkeypatch.setattr(f"{sdk}.port_handler.LATENCY_TIMER", 30_000)


def test_feetech_sdk_as_a_client(patient_sdk):
    with EmulatedFeetechBus(FeetechServo(1, 1000), FeetechServo(2, 3000)) as emulated:
        port, packets = scs.PortHandler(emulated.port), scs.PacketHandler(0)
        assert port.openPort()
        assert packets.ping(port, 2) == (777, 0, 0)
        assert packets.read2ByteTxRx(port, 1, 56) == (1000, 0, 0)
        assert packets.write1ByteTxRx(port, 1, 40, 1) == (0, 0)
        write = scs.GroupSyncWrite(port, packets, 42, 2)
        write.addParam(1, [0x4C, 0x04])  # 1100
        write.addParam(2, [0x80, 0x0C])  # 3200
        assert write.txPacket() == 0
        wait_until(lambda: emulated.servos[1].get("Goal_Position") == 3200)
        time.sleep(0.1)
        read = scs.GroupSyncRead(port, packets, 56, 2)
        read.addParam(1)
        read.addParam(2)
        assert read.txRxPacket() == 0
        assert read.getData(1, 56, 2) == 1100
        assert read.getData(2, 56, 2) == 3000  # its torque is off
        emulated.servos[0].fault = 32
        assert packets.read1ByteTxRx(port, 1, 5) == (1, 0, 32)
        port.closePort()


def test_dynamixel_sdk_as_a_client(patient_sdk):
    with EmulatedDynamixelBus(DynamixelServo(1, position=1000), DynamixelServo(2, position=3000)) as emulated:
        port, packets = dxl.PortHandler(emulated.port), dxl.PacketHandler(2.0)
        assert port.openPort()
        assert packets.ping(port, 2) == (1200, 0, 0)
        assert packets.read4ByteTxRx(port, 1, 132) == (1000, 0, 0)
        assert packets.write1ByteTxRx(port, 1, 64, 1) == (0, 0)
        assert packets.write4ByteTxRx(port, 1, 20, 5) == (0, 7)  # EEPROM is locked while the torque is on
        assert packets.write4ByteTxRx(port, 1, 116, 5000) == (0, 6)  # beyond Max_Position_Limit
        write = dxl.GroupSyncWrite(port, packets, 116, 4)
        write.addParam(1, list((1100).to_bytes(4, "little")))
        assert write.txPacket() == 0
        wait_until(lambda: emulated.servos[0].get("Goal_Position") == 1100)
        time.sleep(0.1)
        read = dxl.GroupSyncRead(port, packets, 132, 4)
        read.addParam(1)
        read.addParam(2)
        assert read.txRxPacket() == 0
        assert (read.getData(1, 132, 4), read.getData(2, 132, 4)) == (1100, 3000)
        port.closePort()


def test_the_path_of_a_port_that_was_lost_is_not_given_to_another_at_once():
    """A `TorqueGuard` may still wait for it, and would switch the torque of the other off."""
    ports = []
    for _ in range(3):
        with EmulatedFeetechBus(FeetechServo(1)) as emulated:
            ports.append(emulated.port)
    assert len(set(ports)) == 3


# -- the drivers ----------------------------------------------------------------------------------------------------


def test_values_are_read_and_written(kind):
    emulated, driver = line(kind, 1000, 2000, 3000)
    with emulated:
        bus = driver()
        bus.connect()
        assert bus.sync_read(["Present_Position"]) == {"j1": (1000,), "j2": (2000,), "j3": (3000,)}
        assert bus.scan((3, 1, 2)) == {i: emulated.servos[0].model for i in (1, 2, 3)}
        bus.write("Homing_Offset", "j2", -700)  # negative in either coding
        assert bus.read("Homing_Offset", "j2") == -700 == emulated.servo(2).get("Homing_Offset")
        expected = 2000 + 700 if kind[1] is FeetechServo else 2000 - 700
        assert bus.read("Present_Position", "j2") == expected
        for motor in bus.motors:
            bus.write("Torque_Enable", motor, 1)
        bus.sync_write("Goal_Position", {"j1": 1100, "j3": 2900})
        wait_until(lambda: emulated.servo(3).get("Goal_Position") == 2900)
        time.sleep(0.1)
        registers = bus.sync_read(["Torque_Enable", "Goal_Position"], ["j1", "j3"])
        assert registers == {"j1": (1, 1100), "j3": (1, 2900)}
        assert bus.sync_read(["Present_Position"], ["j3", "j1"]) == {"j3": (2900,), "j1": (1100,)}
        assert bus.n_repeated == 0 and emulated.rejected == 0
        bus.disconnect()
        with pytest.raises(ConnectionLost, match="the port is closed"):
            bus.read("ID", "j1")


def test_a_header_inside_a_packet_is_stuffed():
    emulated, driver = line(KINDS["dynamixel"], 2048, 2048)
    with emulated:
        bus = driver()
        bus.connect()
        for motor in bus.motors:
            bus.write("Operating_Mode", motor, 4)
        goal = int.from_bytes(b"\xff\xff\xfd\xff", "little", signed=True)  # -131073: 32 turns back
        bus.write("Goal_Position", "j1", goal)
        assert bus.read("Goal_Position", "j1") == goal == emulated.servo(1).get("Goal_Position")
        bus.sync_write("Goal_Position", {"j1": 1, "j2": goal})
        assert bus.sync_read(["Goal_Position"]) == {"j1": (1,), "j2": (goal,)}
        assert emulated.rejected == 0


@pytest.mark.parametrize("faults", [Faults(missing=0.3), Faults(damaged=0.3), Faults(split=0.7), Faults(noise=0.5),
                                    Faults(late=0.2, delay=0.03),
                                    Faults(missing=0.05, damaged=0.05, split=0.3, noise=0.2, late=0.05, delay=0.025)],
                         ids=["lost", "damaged", "split", "noise", "late", "all"])
def test_no_fault_of_the_line_gives_a_wrong_value(kind, faults):
    """Every value that is returned is right. A request that fails too often raises an error."""
    emulated, driver = line(kind, 1000, 2000, faults=faults, n_retries=10, reply_timeout=0.02)
    for number in (1, 2):
        emulated.servo(number).set("P_Coefficient" if kind[1] is FeetechServo else "Position_P_Gain", 10 * number)
    gain = "P_Coefficient" if kind[1] is FeetechServo else "Position_P_Gain"
    with emulated:
        bus = driver()
        bus.connect(check=False)
        n_read = 0
        for i in range(8):
            try:
                assert bus.read(gain, f"j{i % 2 + 1}") == 10 * (i % 2 + 1)
                positions = bus.sync_read(["Present_Position"])
                assert positions == {"j1": (1000,), "j2": (2000,)}
                bus.write("Torque_Enable", "j1", i % 2)
                assert emulated.servo(1).get("Torque_Enable") == i % 2
                n_read += 1
            except ConnectionLost:
                continue
        assert n_read > 0 and (bus.n_repeated > 0 or faults.split or faults.noise)


def test_lost_packets_do_not_end_a_run():
    """300 observations of an arm with 6 % lost packets. With two repetitions, 9 of them would fail."""
    arm = ARM_TYPES["so101_follower"]
    with emulate_arm(arm, faults=Faults(missing=0.06)) as emulated:
        bus = arm.bus(emulated.port)
        bus.connect()
        for _ in range(300):
            assert set(bus.sync_read(["Present_Position"])) == set(arm.motors)
        assert bus.n_repeated > 60


def test_repetitions_are_bounded_in_number_and_time(kind):
    emulated, driver = line(kind, 1000, n_retries=50, reply_timeout=0.05)
    with emulated:
        bus = driver()
        bus.connect()
        emulated.servos.clear()
        began = time.monotonic()
        with pytest.raises(ConnectionLost, match=r"no reply, after [4-6] requests"):  # 0.07 s each
            bus.read("Torque_Enable", "j1")
        assert 0.3 < time.monotonic() - began < 1.5
        bus.n_retries, before = 1, bus.n_repeated
        with pytest.raises(ConnectionLost, match="no reply, after 2 requests"):
            bus.read("Torque_Enable", "j1")
        bus.n_retries = 0
        with pytest.raises(ConnectionLost, match="no reply\\n"):
            bus.read("Torque_Enable", "j1")
        assert bus.n_repeated == before + 1


def test_a_computer_that_is_busy_for_all_the_time_repeats_three_times(kind):
    emulated, driver = line(kind, 1000, n_retries=10, reply_timeout=0.05)
    with emulated:
        bus = driver()
        bus.connect()
        bus.retry_seconds = 0  # all of it is over when the first reply is missed
        emulated.servos.clear()
        with pytest.raises(ConnectionLost, match="no reply, after 4 requests"):
            bus.read("Torque_Enable", "j1")


def test_a_servo_that_does_not_answer_is_named(kind):
    emulated, driver = line(kind, 1000, 2000, reply_timeout=0.1)
    with emulated:
        bus = driver()
        emulated.servos.pop()
        with pytest.raises(ConnectionLost, match=r"no answer from j2 \(id 2\)"):
            bus.connect()
        assert not bus.is_connected
        emulated.servos[0].set("Model_Number", 999)
        bus.motors.pop("j2")
        with pytest.raises(RobotError, match="model number 999, and .* was expected"):
            bus.connect()


def test_error_bits_stop(kind):
    emulated, driver = line(kind, 1000, 2000)
    with emulated:
        bus = driver()
        bus.connect()
        emulated.servo(2).fault = 32
        words = "overload" if kind[1] is FeetechServo else "hardware error"
        for request in (lambda: bus.sync_read(["Present_Position"]), lambda: bus.write("Torque_Enable", "j2", 0)):
            with pytest.raises(RobotError, match=rf"j2: the servo reports: .*{words}"):
                request()
        assert bus.read("ID", "j1") == 1
        if kind[1] is FeetechServo:
            emulated.servo(2).fault = 1  # a low voltage is noted
            assert bus.read("ID", "j2") == 2 and bus.errors["j2"] == 1


def test_a_pulled_cable_is_a_lost_connection(kind):
    emulated, driver = line(kind, 1000)
    with emulated:
        bus = driver()
        bus.connect()
        emulated.pull_cable()
        with pytest.raises(ConnectionLost, match="connection is gone"):
            bus.read("ID", "j1")
        with pytest.raises(ConnectionLost, match="port is closed"):
            bus.sync_write("Goal_Position", {"j1": 5})
    with pytest.raises(ConnectionLost, match="port cannot be opened"):
        driver().connect()
    with pytest.raises(UserError, match="bits per second are not possible"), kind[0](kind[1](1)) as other:
        kind[2](other.port, {}, baudrate=12345).connect()


def test_a_port_is_used_by_one_program_and_can_still_be_released(kind):
    emulated, driver = line(kind, 1000)
    with emulated:
        first, second = driver(), driver()
        first.connect()
        with pytest.raises(ConnectionLost, match="exclusively lock"):
            second.connect()
        second.connect(check=False)
        second.sync_write("Torque_Enable", {"j1": 0})
        second.disconnect()
        assert first.read("ID", "j1") == 1
        first.disconnect()
        second.connect()
        second.disconnect()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_registers_return_what_was_stored(data):
    r = data.draw(st.sampled_from([*FEETECH.values(), *DYNAMIXEL.values()]))
    bits = r.sign if r.sign > 0 else 8 * r.size + r.sign
    low = 0 if r.sign == 0 else -(1 << bits) + (r.sign > 0)
    value = data.draw(st.integers(low, (1 << bits) - 1))
    assert r.decode(r.encode(value)) == value
    for outside in (low - 1, 1 << bits):
        with pytest.raises(ConfigError, match="does not fit"):
            r.encode(outside)


def test_signs_are_coded_as_the_manuals_say():
    assert Register(31, 2, 11).encode(-5) == bytes([5, 8])  # Feetech, Homing_Offset: bit 11 is the sign
    assert Register(56, 2, 15).decode(bytes([0x0A, 0x80])) == -10
    assert Register(116, 4, -1).encode(-1) == b"\xff" * 4  # Dynamixel: two's complement


def test_random_bytes_never_crash_the_emulator(kind):
    emulated, driver = line(kind, 1000)
    rng = np.random.default_rng(0)
    with emulated:
        bus = driver()
        bus.connect()
        for _ in range(50):
            bus._port.ser.write(rng.bytes(int(rng.integers(1, 60))))
        time.sleep(0.05)
        bus._wait_until_quiet()
        bus.n_retries = 5  # the emulator may wait for the rest of what looked like a long packet
        assert bus.read("ID", "j1") == 1
