"""The studio in Debian's Firefox, which WebDriver BiDi drives: the page opens, and a key moves the toy."""

import json
import re
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from fixtures.studios import served
from fixtures.waiting import wait_until

pytest.importorskip("nicegui", reason="extra studio not installed")
websockets = pytest.importorskip("websockets.sync.client", reason="extra serve not installed")
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(shutil.which("firefox-esr") is None, reason="no firefox-esr")]
AGENT = "document.querySelector('.live')?.shapes?.at(-1).at.join()"  # the last shape of the fork
STATUS = "document.querySelector('[role=status]').textContent"


class Firefox:
    """A session of WebDriver BiDi with one page."""

    def __init__(self, connection):
        self.connection, self.count = connection, 0
        self.ask("session.new", capabilities={})
        self.page = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def ask(self, method, **params):
        self.count += 1
        self.connection.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while (answer := json.loads(self.connection.recv(60))).get("id") != self.count:
            pass
        assert answer["type"] == "success", answer
        return answer["result"]

    def evaluate(self, expression):
        """The value of an expression of JavaScript that is a text or a truth value."""
        answer = self.ask("script.evaluate", expression=expression, target={"context": self.page}, awaitPromise=True)
        assert answer["type"] == "success", answer
        return answer["result"].get("value")

    def key(self, action, key):
        self.ask("input.performActions", context=self.page,
                 actions=[{"type": "key", "id": "keys", "actions": [{"type": action, "value": key}]}])


@contextmanager
def firefox(profile):
    browser = subprocess.Popen(
        ["firefox-esr", "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port=0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = next(m[1] for line in browser.stderr if (m := re.search(r"BiDi listening on (ws://\S+)", line)))
        with websockets.connect(f"{address}/session", max_size=None) as connection:
            yield Firefox(connection)
    finally:
        browser.kill()
        browser.wait()
        browser.stderr.close()


def test_a_key_moves_the_toy(tmp_path):
    (tmp_path / "profile").mkdir()
    with served(tmp_path / "project") as address, firefox(tmp_path / "profile") as browser:
        browser.ask("browsingContext.navigate", context=browser.page, url=address, wait="complete")
        assert browser.evaluate("document.title").startswith("understudy")
        wait_until(lambda: browser.evaluate(AGENT), 60)
        start = "[...document.querySelectorAll('button')].find(b => b.textContent === 'Start showing')"
        browser.evaluate(f"{start}.click()")
        wait_until(lambda: browser.evaluate("document.activeElement.matches('.live')"), 60)
        before = browser.evaluate(AGENT)
        browser.key("keyDown", "\ue014")  # the right arrow
        wait_until(lambda: re.match(r"step (\d\d|[5-9])|It ", browser.evaluate(STATUS)), 60)
        browser.key("keyUp", "\ue014")
        assert float(browser.evaluate(AGENT).split(",")[0]) > float(before.split(",")[0])
