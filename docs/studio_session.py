"""Goes once around the studio in a browser, as a person does: python docs/studio_session.py [--demonstrations 20]

A program looks at the picture of `push`, holds the arrow keys in real time and presses the buttons. It prints the
minutes of each step, without the time for pictures, and writes the pictures of studio.md and the clip of the README.
It needs Chromium, playwright and about 10 minutes.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "src"), str(ROOT / "tests")]

from fixtures.studios import handle, press, served, start, tab  # noqa: E402

from understudy.core import keys  # noqa: E402
from understudy.envs.toys.push import PushExpert  # noqa: E402

IMAGES, STEPS, THEMES = ROOT / "docs" / "images", ("Show", "Check", "Train", "Watch", "Compare"), ("light", "dark")
VIEWPORTS = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 800}}
CLIP, COLORS, GAP = (720, 450), 64, 10
LOOK = """() => {
    const shapes = document.querySelector('.live').shapes, place = ({at: [x, y]}) => [x, 1 - y];
    return [document.querySelector('[role=status]').textContent, ...[3, 1, 0].map(i => place(shapes[i]))];
}"""  # the status, and where disc, block and goal are
DIRECTIONS = (("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"))
PATIENCE, TAKEOVERS, MOST_WATCHED = 45, 6, 12  # steps of an episode before a takeover; how many takeovers and episodes
LONGEST = 10 * 60_000  # ms that a command may take


class Visit:
    """One person at the page, with a clock that stands while pictures are taken."""

    def __init__(self, page: Page, since: float):
        self.page, self.since, self.minutes = page, since, dict[str, float]()
        self.clip = list[tuple[Image.Image, int]]()  # and how long each is shown, ms
        self.pictures = dict[tuple[str, str, str], Image.Image]()

    def note(self, what: str) -> None:
        """Notes how long something took, which began when the last thing ended."""
        now = time.monotonic()
        self.minutes[what], self.since = (now - self.since) / 60, now

    def film(self, milliseconds: int) -> None:
        self.clip.append((Image.open(io.BytesIO(self.page.screenshot())).resize(CLIP), milliseconds))

    def photograph(self, step: str, stands: bool = True) -> None:
        began = time.monotonic()
        self.page.mouse.move(0, 0)  # away from what has a tooltip
        for size, viewport in VIEWPORTS.items():
            self.page.set_viewport_size(viewport)
            for theme in reversed(THEMES):
                self.page.emulate_media(color_scheme=theme)
                self.page.wait_for_timeout(500)  # as long as the colors fade
                self.pictures[step, size, theme] = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        self.since += (time.monotonic() - began) * stands

    def look(self) -> tuple[int, torch.Tensor]:
        """The step of the episode, -1 between two, and the state, (1, 8)."""
        status, disc, block, goal = self.page.evaluate(LOOK)
        step = re.match(r"step (\d+)", status)
        return int(step[1]) if step else -1, torch.tensor([[*disc, *block, 1.0, 0.0, *goal]])

    def drive(self, films: bool = False, pause_at: int = 1000) -> None:
        """Holds the keys that push the block to the goal, until the episode ends. At `pause_at` it takes pictures."""
        expert, held, last = PushExpert(noise=0.0), set[str](), 0
        while (seen := self.look())[0] >= last:
            last, state = seen
            action = expert.act({expert.column: state}, {"key": keys(0, [0]), "count": torch.zeros(1).long()})[0][0]
            held = self.hold(held, {pair[int(a > 0)] for pair, a in zip(DIRECTIONS, action.tolist(), strict=True)
                                    if last < pause_at and abs(a) > 0.4 * float(action.abs().max())})
            if last >= pause_at:
                self.photograph("Show")
                pause_at = 1000
            elif films and last % 3 == 0:
                self.film(150)
            self.page.wait_for_timeout(30)
        self.hold(held, set())

    def hold(self, before: set[str], now: set[str]) -> set[str]:
        for key in before - now:
            self.page.keyboard.up(key)
        for key in now - before:
            self.page.keyboard.down(key)
        return now

    def wait_for(self, command: str) -> None:
        while not self.page.get_by_text(f"{command}: done.").is_visible():
            self.page.wait_for_timeout(1500)
            self.film(200)

    def show(self, count: int) -> None:
        """Shows demonstrations. The second is interrupted by the pictures, and is left out later."""
        start(self.page, "Start showing")
        for number in range(1, count + 1):
            self.page.get_by_role("status").filter(has_text="step 0").wait_for()
            self.drive(number == 1, 12 if number == 2 else 1000)
            self.page.get_by_text(f"{number} shown").wait_for()
        press(self.page, "Stop showing")
        self.page.get_by_role("button", name="Start showing").wait_for()
        self.note(f"show {count} demonstrations")

    def check(self) -> None:
        tab(self.page, "Check")
        press(self.page, "Look at demonstration 2")
        handle(self.page, "Step of demonstration 2").press("PageUp")
        self.photograph("Check")
        self.film(1500)
        self.page.get_by_role("button", name="Look at demonstration 2", exact=True).focus()
        self.page.keyboard.press("Delete")
        self.page.get_by_role("button", name="Take back").wait_for()
        self.film(1500)
        self.note("check them, and leave one out")

    def train(self) -> None:
        tab(self.page, "Train")
        press(self.page, "Train")
        self.page.get_by_text(", about").wait_for()
        self.photograph("Train", stands=False)  # the training continues meanwhile
        self.wait_for("Train")
        self.note("train")

    def watch(self) -> None:
        tab(self.page, "Watch")
        start(self.page, "Watch")
        self.page.get_by_text("the policy acts").wait_for()
        watched, takeovers, last = 0, 0, 0
        while takeovers < TAKEOVERS and watched < MOST_WATCHED:
            step = self.look()[0]
            if step >= PATIENCE:
                self.drive(films=takeovers == 0)
                step, takeovers = 0, takeovers + 1
            elif ("Watch", "phone", "dark") not in self.pictures and step >= 15:
                self.page.keyboard.press("p")  # pauses
                self.page.wait_for_timeout(500)
                self.photograph("Watch")
                self.page.keyboard.press("p")
            elif watched == 0 and step % 3 == 0:
                self.film(150)
            watched, last = watched + (step < last), step
            self.page.wait_for_timeout(50)
        press(self.page, "Stop watching")
        self.note(f"watch {watched} episodes, and take over in {takeovers}")

    def improve_and_compare(self) -> None:
        press(self.page, "Learn from them")
        self.wait_for("Improve")
        self.note("improve")
        tab(self.page, "Compare")
        press(self.page, "Compare")
        self.wait_for("Compare")
        self.page.get_by_text("See where they fail").or_(self.page.get_by_text("Both succeeded")).first.wait_for()
        self.note("compare")
        self.film(4000)
        self.photograph("Compare")


def save(visit: Visit) -> None:
    """Writes a picture of each step on a desktop, one of all steps on a phone, and the clip."""
    for theme in THEMES:
        phone = [visit.pictures[step, "phone", theme] for step in STEPS]
        wide = Image.new("RGB", (sum(p.width + GAP for p in phone) - GAP, phone[0].height), "#808080")
        for i, picture in enumerate(phone):
            wide.paste(picture, (i * (picture.width + GAP), 0))
        desktop = {step.lower(): visit.pictures[step, "desktop", theme] for step in STEPS}
        for name, picture in {"phone": wide, **desktop}.items():
            picture.quantize(COLORS, dither=Image.Dither.NONE).save(IMAGES / f"studio-{name}-{theme}.png",
                                                                    optimize=True)
    pictures, milliseconds = zip(*visit.clip, strict=True)
    pictures[0].save(IMAGES / "studio-loop.webp", save_all=True, append_images=pictures[1:], loop=0, quality=60,
                     duration=list(milliseconds), method=4)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--demonstrations", type=int, default=20)
    count, began = parser.parse_args().demonstrations, time.monotonic()
    with (tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright,
          served(Path(folder) / "studio-push", env="push") as address):
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=VIEWPORTS["desktop"], color_scheme="light")
        page.set_default_timeout(LONGEST)
        page.goto(address)
        page.get_by_role("button", name="Start showing").wait_for()
        visit = Visit(page, began)
        visit.note("open the page")
        visit.show(count)
        for step in (visit.check, visit.train, visit.watch, visit.improve_and_compare):
            step()
        print(page.get_by_role("tabpanel", name="Compare").inner_text(), end="\n\n")
        browser.close()
    save(visit)
    print("| step | minutes |\n|---|--:|", *(f"| {what} | {minutes:.1f} |" for what, minutes in visit.minutes.items()),
          f"| together | {sum(visit.minutes.values()):.1f} |", sep="\n")


if __name__ == "__main__":
    main()
