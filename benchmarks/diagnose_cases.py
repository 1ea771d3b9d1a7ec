"""The cases of benchmarks/diagnose.py: 30 faults in each of two worlds, and 30 sound runs, each in three sets.

A word with bars has one alternative for each set: "late 4|6|5" is "late 4" in the set `open`, "late 6" in the set
`judged` and "late 5" in the set `fresh`. So the sets have the same kinds of faults, with other sizes, components,
cameras and directions. In `reach`, the target moves where chunks are long, and changes its direction: in gusts, as in
`carry`, and while it moved in one direction, long chunks did no harm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

SETS = ("open", "judged", "fresh")

# Codes of checks that did not exist when the list was made. A check with the same meaning may get another code.
NEW = {"averaged ways": "averaged-ways", "image never changes": "image-never-changes",
       "component treated as constant": "treated-as-constant", "chunk too long": "chunk-too-long",
       "decided at the start": "decided-at-the-start"}
AVERAGED, FROZEN, CONSTANT, LONG, DECIDED = NEW.values()


@dataclass(frozen=True)
class Case:
    """A run, where it acts, and what should be said of it.

    Args:
        world: Where the demonstrations were recorded.
        codes: The accepted codes of the first finding. None for a sound run.
        act: Where the policy acts; `world` if it is empty. None: the command gets the data alone.
        size: Steps or factor that the finding should name.
        data: Changes the demonstrations, see `CHANGES` of diagnose.py.
        run: Changes the trained run, see `RUNS` there.
        options: Of the method.
        fields: Fields of the method's codec and executor to change.
    """

    name: str
    world: str
    codes: tuple[str, ...] = ()
    act: str | None = ""
    size: float | str | None = None
    method: str = "bc"
    options: Mapping = field(default_factory=dict)
    fields: Mapping = field(default_factory=dict)
    steps: int | str = 800
    episodes: int | str = 80
    data: str = ""
    run: str = ""

    def of(self, which: str) -> Case:
        """The case in a set."""
        def chosen(text):
            return (re.sub(r"[^\s|]+(\|[^\s|]+)+", lambda word: word[0].split("|")[SETS.index(which)], text)
                    if isinstance(text, str)
                    else {k: number(v) for k, v in text.items()} if isinstance(text, Mapping) else text)

        def number(value):
            return float(chosen(value)) if isinstance(value, str) else value
        return replace(self, **{k: chosen(getattr(self, k)) for k in ("name", "world", "act", "data", "run")},
                       size=number(self.size), steps=int(number(self.steps)), episodes=int(number(self.episodes)),
                       options={k: int(number(v)) for k, v in self.options.items()}, fields=chosen(self.fields))


def in_carry(name: str, fault: str, *codes: str, **options) -> Case:
    return Case(f"carry: {name}", "carry", codes, "|".join(f"carry__{f}" for f in fault.split("|")), **options)


def in_reach(name: str, fault: str, *codes: str, **options) -> Case:
    return Case(f"reach: {name}", "reach", codes, "|".join(f"reach__{f}" for f in fault.split("|")), **options)


CARRY = (
    Case("carry: actions stored 1|2|3 steps late", "carry", ("action-shift",), size="1|2|3", data="late 1|2|3"),
    Case("carry: actions stored 4|6|5 steps late", "carry", ("action-shift",), None, "4|6|5", data="late 4|6|5"),
    Case("carry: actions stored 18|12|15 steps late", "carry", ("action-shift",), size="18|12|15",
         data="late 18|12|15"),
    Case("carry: actions stored 2|4|3 steps early", "carry", ("action-shift",), None, "2|4|3", data="early 2|4|3"),
    in_carry("actions executed 3|7|5 steps late", "late_3|late_7|late_5", "latency", size="3|7|5"),
    in_carry("actions executed 14|11|13 steps late", "late_14|late_11|late_13", "latency", size="14|11|13"),
    in_carry("sensors 2|4|3 steps late", "late_sensors_2|late_sensors_4|late_sensors_3", "latency", size="2|4|3"),
    in_carry("sign of an action, y|x|gripper", "sign_y|sign_x|sign_grip", "sign-flip"),
    in_carry("sign of a sensor, y|x|gripper", "sensor_sign_y|sensor_sign_x|sensor_sign_grip", "sign-flip"),
    in_carry("an action has 0.4|2.0|1.8 of its effect", "scale_x|scale_y|faster_x", "action-scale", size="0.4|2.0|1.8"),
    in_carry("actions exchanged, y|y|x with x|gripper|gripper", "swapped_actions|swapped_grip|swapped_ends",
             "component-order"),
    in_carry("sensors exchanged, y|gripper|gripper with x|x|y", "swapped_states|swapped_opening|swapped_y_opening",
             "component-order"),
    in_carry("places exchanged, object|x|object.x with goal|y|goal.y", "exchanged_places|exchanged_axes|exchanged_ends",
             "component-order"),
    in_carry("state in milli|centi|deci meters", "millimeters|centimeters|decimeters", "observation-units",
             size="1000|100|10"),
    in_carry("offset of an action, x|y|-x", "offset_x|down_y|back_x", "calibration-drift"),
    in_carry("half|third|quarter of the rate, told", "rate_told|rate_third_told|rate_quarter_told", "rate-differs",
             size="0.5|0.3333|0.25"),
    in_carry("half|third|quarter of the rate, not told", "rate_untold|rate_third_untold|rate_quarter_untold",
             "action-scale", "rate-differs"),
    in_carry("stuck sensor, y|x|gripper", "stuck_y|stuck_x|stuck_grip", "constant-sensor"),
    in_carry("motor without power, x|y|gripper", "dead_x|dead_y|dead_grip", "action-scale", "constant-sensor"),
    in_carry("tight limits, 0.33|0.25|0.4", "limited|very_limited|less_limited", "limits-bind"),
    in_carry("starts in a corner, low|high|lower-right", "elsewhere|opposite|aside", "start-states"),
    Case("carry: goals only from a part, in x|y|both", "carry__half|carry__strip|carry__window",
         ("start-states", DECIDED), "carry"),
    in_carry("noisy sensors, 0.15|0.1|0.07", "noisy|noisy_less|noisy_least", "novel-states", "observation-noise"),
    in_carry("velocities added|subtracted|partly-subtracted to positions", "added|subtracted|subtracted_hand",
             "action-convention"),
    Case("carry: 30|20|25 updates", "carry", ("underfit",), None, steps="30|20|25"),
    Case("carry: two ways averaged, chunks of 20|24|22", "carry__way", (AVERAGED, LONG),
         options={"horizon": "20|24|22"}),
    Case("carry: chunks of 30|40|35 in gusts", "carry__gust|carry__storm|carry__gale", (LONG,),
         options={"horizon": "30|40|35"}),
    Case("carry: gripper in a small unit, 0.004|0.002|0.003", "carry__small|carry__tiny|carry__little", (CONSTANT,),
         fields={"min_scale": 0.05}),
    Case("carry: gripper stored as 0 and 1|255|100", "carry",
         ("action-scale", "action-units", "calibration-drift", "action-convention"), data="gripper 1|255|100"),
    Case("carry: actions stored in percent|degrees|thousandths", "carry", ("action-units",), size="100|57.3|1000",
         data="percent|degrees|thousandths"))

REACH = (
    Case("reach: actions stored 3|2|1 steps late", "reach", ("action-shift",), None, "3|2|1", data="late 3|2|1"),
    Case("reach: actions stored 9|12|7 steps late", "reach", ("action-shift",), size="9|12|7", data="late 9|12|7"),
    Case("reach: actions stored 5|3|2 steps early", "reach", ("action-shift",), None, "5|3|2", data="early 5|3|2"),
    in_reach("actions executed 5|8|6 steps late", "late_5|late_8|late_6", "latency", size="5|8|6"),
    in_reach("sensors and cameras 8|5|4 steps late", "late_sensors_8|late_sensors_5|late_sensors_4", "latency",
             size="8|5|4"),
    in_reach("cameras 6|9|7 steps late", "late_cameras_6|late_cameras_9|late_cameras_7", "latency", "camera-latency"),
    in_reach("cameras exchanged", "swapped_cameras", "cameras-swapped"),
    in_reach("red and blue exchanged", "bgr", "color-order"),
    in_reach("red and blue of one camera exchanged, side|top|side", "bgr_side|bgr_top|bgr_side", "color-order"),
    in_reach("frozen camera, top|side|both", "frozen_top|frozen_side|frozen_both", FROZEN),
    in_reach("black camera, top|side|both", "black_top|black_side|black_both", FROZEN, "camera-differs"),
    Case("reach: camera frozen in the recording, top|side|both",
         "reach__frozen_top|reach__frozen_side|reach__frozen_both", (FROZEN,), "reach"),
    in_reach("larger|smaller|half-larger images", "larger|smaller|half_larger", "camera-size"),
    in_reach("cameras zoomed by 1.5|2|1.33", "zoomed|zoomed_more|zoomed_less", "camera-differs"),
    in_reach("cameras upside-down|mirrored|turned", "flipped|mirrored|turned", "camera-differs"),
    in_reach("images with 30|45|55 % of the light", "dark|dim|dusk", "camera-differs"),
    in_reach("camera with another name, side|top|side", "renamed_camera|renamed_top|renamed_side", "missing-column"),
    in_reach("mirrored action, x|y|wrist", "mirror_x|mirror_y|mirror_wrist", "sign-flip"),
    in_reach("offset of an action, y|x|wrist", "offset_y|left_x|raised_wrist", "calibration-drift"),
    in_reach("actions in another order, 2,0,1|1,2,0|0,2,1", "rolled_actions|rolled_back|swapped_grip",
             "component-order"),
    in_reach("positions added|subtracted|partly-subtracted to positions", "added|subtracted|subtracted_hand",
             "action-convention"),
    in_reach("offset of a sensor, wrist|x|y", "height|left|up", "start-states", "calibration-drift"),
    Case("reach: two ways averaged, chunks of 20|24|22", "reach__way", (AVERAGED, LONG),
         options={"horizon": "20|24|22"}),
    Case("reach: chunks of 30|40|35 while the target moves", "reach__turn", (LONG,), options={"horizon": "30|40|35"}),
    Case("reach: targets only from a part, left|low|right", "reach__half|reach__strip|reach__right",
         ("start-states", DECIDED), "reach"),
    Case("reach: 30|20|25 updates", "reach", ("underfit",), steps="30|20|25"),
    Case("reach: 4|4|3 demonstrations", "reach", ("overfit",), episodes="5|4|3"),
    Case("reach: checkpoint after 30|50|40 updates", "reach", ("wrong-checkpoint",), run="early 30|50|40"),
    Case("reach: statistics of other data, 57.3|25.4|10 times", "reach", ("wrong-statistics",),
         run="statistics 57.29578|25.4|10"),
    Case("reach: actions stored in percent|degrees|thousandths", "reach", ("action-units",), size="100|57.3|1000",
         data="percent|degrees|thousandths"))


def sound(world: str, method: str, steps: int = 800, episodes: int = 80, **options) -> Case:
    name = " ".join([f"sound: {world} {method}", *(f"{k}={v}" for k, v in options.items())])
    return Case(name, world, method=method, steps=steps, episodes=episodes, options=options)


# Those that are trained longer, and those in easier worlds than `carry`, need it to succeed.
SOUND = (
    sound("carry", "bc", 1500), sound("carry", "bc", horizon=4), sound("carry", "bc-gmm", 3000),
    sound("carry", "bc-bins"), sound("carry", "bet"), sound("carry", "interpolant-policy", 9000),
    sound("carry__gust", "bc-bins"), sound("fork", "knn"), sound("carry", "flow-policy", 4500),
    sound("fork", "diffusion-bc", 1500), sound("carry", "adaflow", 6000), sound("carry", "mip"),
    sound("lane_driving", "iql", 2400), sound("fork", "search-bc"), sound("reach__gust", "mip"),
    sound("carry", "bc-gmm", 3000, horizon=4), sound("carry__gust", "bc"), sound("carry__way", "flow-policy", 4500),
    sound("carry__small", "bc"), sound("reach", "bc"), sound("reach", "bc", horizon=4),
    sound("reach", "bc-gmm", 2400, horizon=4), sound("reach", "flow-policy", 2400), sound("reach", "bc-bins"),
    sound("reach", "mip"), sound("reach__gust", "bc"), sound("fork", "bc-gmm", 1500),
    sound("reach__gust", "bc-bins"), sound("lane_driving", "bc"), sound("fork", "bet", 2000))
KINDS = {"carry": CARRY, "reach": REACH, "sound": SOUND}


def cases_of(which: str, kind: str | None = None) -> list[Case]:
    """The cases of a set, of one kind or of all."""
    return [case.of(which) for k, cases in KINDS.items() if kind in (None, k) for case in cases]
