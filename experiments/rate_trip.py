"""A full trip through the rating kit in a real browser: sheets, two raters, files, agreement.

    python experiments/rate_trip.py --workdir=RUN --output=DIR   # a run with a stage `explain`
    python experiments/rate_trip.py --output=DIR                 # made-up explanations

Needs Chromium and chromedriver, which are driven over WebDriver's HTTP protocol without further
packages. The sheets are opened from disk in a browser that has no network. Rater Ada answers by
keyboard and reloads the page half way, which must lose nothing; rater Béla clicks. Both save their
files, which are then collected. What they think is drawn: a liking for each system plus noise, and
low marks for the broken texts, so that the collected means, gold checks and alpha are known to be
plausible. Takes about a minute; writes screenshots at 390 and 1440 pixels, light and dark, and
`trip.json`. Ends with status 1 where a check fails.
"""

from __future__ import annotations

import argparse
import base64
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from xrec_jax.api import rate
from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import json_lines, read_json, write_text

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that WebDriver names an element with
KEYS = {"Enter": "\ue007", "ArrowDown": "\ue015", "ArrowRight": "\ue014"}
SYSTEMS = ("Heron", "Kestrel", "Plover")


class Browser:
    """A headless Chromium, driven through chromedriver.

    Args:
      driver: path of chromedriver.
      binary: path of Chromium.
      folder: for the profile and the downloads.
      port: for chromedriver.
    """

    def __init__(self, driver: str, binary: str, folder: pathlib.Path, port: int):
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        self._root = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        options = {
            "binary": binary,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--force-color-profile=srgb",
                f"--user-data-dir={folder / 'profile'}",
                "--host-resolver-rules=MAP * ~NOTFOUND",  # any request to a network fails
            ],
            "prefs": {
                "download.default_directory": str(self.downloads),
                "download.prompt_for_download": False,
            },
        }
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options}
        capabilities["goog:loggingPrefs"] = {"browser": "ALL", "performance": "ALL"}
        try:
            self._wait_for_driver()
            session = self._call(
                "POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}
            )
        except BaseException:
            self._process.kill()
            raise
        self._session = f"/session/{session['sessionId']}"

    def _wait_for_driver(self) -> None:
        for _ in range(100):
            try:
                if self._call("GET", "/status")["ready"]:
                    return
            except OSError:
                time.sleep(0.1)
        raise UserError("chromedriver does not start")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"].split("\n")[0]) from error

    def call(self, path: str, body: Any) -> Any:
        """Posts a command to the session."""
        return self._call("POST", self._session + path, body)

    def open(self, path: pathlib.Path) -> None:
        """Opens a file and gives its page the focus."""
        self.call("/url", {"url": path.resolve().as_uri()})

    def script(self, code: str, *arguments: Any) -> Any:
        """The value of a function body in the page."""
        return self.call("/execute/sync", {"script": code, "args": list(arguments)})

    def click(self, selector: str) -> None:
        """Clicks as a mouse does: fails where something lies above the element."""
        element = self.call("/element", {"using": "css selector", "value": selector})
        self.call(f"/element/{element[ELEMENT]}/click", {})

    def press(self, *keys: str) -> None:
        """Types keys into whatever has the focus."""
        strokes = []
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                strokes.append({"type": kind, "value": KEYS.get(key, key)})
        self.call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def picture(self, path: pathlib.Path, *, width: int, dark: bool, end: bool = False) -> None:
        """A screenshot of the page's beginning or end as a phone or a wide screen shows it."""
        height = 844 if width < 600 else 900
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 600 else 1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        wide = self.script("return document.documentElement.scrollWidth")
        check(wide <= width, f"the page is {wide} pixels wide on a screen of {width}")
        self.script("scrollTo(0, arguments[0] ? document.body.scrollHeight : 0)", end)
        data = self.devtools("Page.captureScreenshot", captureBeyondViewport=False)["data"]
        path.write_bytes(base64.b64decode(data))

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Entries of a log since it was last read: "browser" or "performance"."""
        return self.call("/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """Addresses that the pages asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        """Ends the browser and its driver."""
        try:
            self._call("DELETE", self._session)
        finally:
            self._process.terminate()
            self._process.wait(10)


def check(holds: bool, what: str) -> None:
    """Ends the trip with a message where something is not as it must be."""
    if not holds:
        raise UserError(f"the trip failed: {what}")


def made_up(folder: pathlib.Path, count: int = 12) -> pathlib.Path:
    """Explanations of three systems, for a trip without a run."""
    rng = random.Random(7)
    kinds, moods = (
        ("cafe", "bar", "museum", "park", "bakery"),
        ("quiet", "lively", "cosy", "trendy"),
    )
    records = []
    for number in range(count):
        past = [
            f"{i}. Place {rng.randrange(100, 999)}: {rng.choice(kinds)}, {rng.choice(moods)}, "
            f"price level {rng.randrange(1, 5)}, well-liked, in Old Town\n"
            for i in range(1, 9)
        ]
        kind, mood, name = rng.choice(kinds), rng.choice(moods), f"The Amber Gate {number + 1}"
        prompt = (
            f"Places the user went to, oldest first:\n{''.join(past)}\nAbout the user: A woman of "
            f"35-49 from Old Town.\nRecommended place: {name}: {kind}, {mood}, price level 2, "
            "famous, in Riverside\n\nTell the user why this place may suit them and what may speak "
            "against it. Use only the facts above and stay within 75 words.\n"
        )
        texts = (
            f"{name} is a {mood} {kind} at price level 2, close to what you usually pay. You went "
            "to several places of this kind. It is farther from home than most of them, though.",
            f"Try {name}! It is famous, it is a {kind}, and it is a {kind} that is famous.",
            f"You should go to {name} because it is a place and you like places a great deal.",
        )
        records += [
            {"prompt": prompt, "model": system, "completion": text}
            for system, text in zip(SYSTEMS, texts, strict=True)
        ]
    write_text(folder / "explanations.jsonl", json_lines(records))
    return folder / "explanations.jsonl"


class Rater:
    """A made-up person, who answers by a liking for each system and noise of their own.

    Args:
      name: typed into the sheet.
      key: the kit's key, which this person has read, unlike a real one.
      seed: seed of the noise.
    """

    def __init__(self, name: str, key: dict[str, Any], seed: int):
        self.name, self.key, self.rng = name, key, random.Random(seed)

    def marks(self, meaning: dict[str, Any]) -> list[int]:
        """Marks for the questions on one text."""
        return [
            min(10, max(1, round(self._liking(meaning, meaning["system"]) + self.rng.gauss(0, 1))))
            for _ in self.key["questions"]
        ]

    def choice(self, meaning: dict[str, Any]) -> str:
        """Key for the better one of two texts."""
        first, second = (self._liking(meaning, meaning[side]) for side in ("first", "second"))
        gap = first - second + self.rng.gauss(0, 1)
        return "0" if abs(gap) < 0.5 else "1" if gap > 0 else "2"

    def _liking(self, meaning: dict[str, Any], system: str) -> float:
        case = self.key["cases"][meaning["case"]]
        if case["broken"] == system:
            return 1.0
        # The same for all raters, so that there is something to agree on.
        mood = random.Random(f"{case['item']} {system}").uniform(-2.5, 2.5)
        return 7.5 - 1.5 * self.key["systems"].index(system) + mood


def answer(
    browser: Browser,
    rater: Rater,
    steps: dict[str, Any],
    *,
    by: str,
    first: int,
    output: pathlib.Path,
) -> None:
    """Answers the screens of a sheet from number `first` on, to the end or half way."""
    half = len(steps) // 2
    for number, meaning in list(steps.items())[first:]:
        if int(number) - 1 == half and first < half:
            return
        compared = "first" in meaning
        marks = [rater.choice(meaning)] if compared else [str(m) for m in rater.marks(meaning)]
        if by == "keys":
            if int(number) == 2 and not compared:  # arrows: the first mark, then on to 3
                browser.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown")
                marks = marks[1:]
            browser.press(*(mark[-1] for mark in marks))  # 10 is the key 0
            kind = "compare" if compared else "rate"
            if not (output / f"{kind}-1440-light.png").exists():
                pictures(browser, output, kind)
            browser.press("Enter")
        else:
            for place, mark in enumerate(marks):
                value = {"1": "first", "0": "tie", "2": "second"}[mark] if compared else mark
                browser.click(f"fieldset:nth-child({place + 1}) input[value='{value}']")
            browser.click("#next")


def rate_sheet(
    browser: Browser, sheet: pathlib.Path, rater: Rater, *, by: str, output: pathlib.Path
) -> pathlib.Path:
    """Answers a whole sheet, with a reload half way, and returns the saved file."""
    browser.open(sheet)
    shown = browser.script("return JSON.parse(document.getElementById('sheet').textContent)")
    steps = rater.key["sheets"][shown["sheet"]]["steps"]
    # A name, and a first screen that must not let an empty answer pass.
    pictures(browser, output, "start")
    browser.click("#name")
    browser.press(*rater.name, "Enter")
    browser.press("Enter")  # nothing is answered: it must stay and say so
    check("Please answer" in browser.script("return missing.textContent"), "an empty screen passes")
    check(browser.script("return count.textContent").startswith("0 "), "an empty screen counts")
    answer(browser, rater, steps, by=by, first=0, output=output)
    # The reload half way must offer to resume, with the answers that the page stored.
    half = len(steps) // 2
    before = browser.script("return localStorage.getItem(localStorage.key(0))")
    browser.call("/refresh", {})
    offered = browser.script("return document.querySelector('#resume button').textContent")
    check(rater.name in offered, f"after the reload there is only {offered!r}")
    browser.click("#resume button")
    counted = browser.script("return count.textContent")
    check(counted == f"{half} of {len(steps)}", f"after the reload {counted!r} are answered")
    kept = json.loads(browser.script("return localStorage.getItem(localStorage.key(0))"))
    check(kept["answers"] == json.loads(before)["answers"], "the reload changed answers")
    print(f"{rater.name}: {half} of {len(steps)} screens answered, page reloaded, all kept")
    answer(browser, rater, steps, by=by, first=half, output=output)
    browser.click("#save")
    pictures(browser, output, "done")
    # The browser saves in the background.
    for _ in range(100):
        saved = list(browser.downloads.glob(f"ratings-{shown['sheet']}-*.json"))
        if saved:
            break
        time.sleep(0.1)
    check(len(saved) == 1, f"{len(saved)} files were saved")
    print(f"{rater.name}: saved {saved[0].name}")
    return saved[0]


def pictures(browser: Browser, output: pathlib.Path, name: str) -> None:
    """Screenshots in four forms and of a phone's lower part; ends on the wide and light one."""
    browser.picture(output / f"{name}-390-end.png", width=390, dark=True, end=True)
    for width, dark in ((390, False), (390, True), (1440, True), (1440, False)):
        shade = "dark" if dark else "light"
        browser.picture(output / f"{name}-{width}-{shade}.png", width=width, dark=dark)


def trip(args: argparse.Namespace) -> dict[str, Any]:
    """Makes, answers, and collects; returns the collected result."""
    output = pathlib.Path(args.output).absolute()
    output.mkdir(parents=True)
    source = {"workdir": args.workdir} if args.workdir else {"explanations": [str(made_up(output))]}
    rate.make(**source, output=output / "kit", pairs=args.pairs, raters=2, gold=2, seed=args.seed)
    key = read_json(output / "kit" / "KEY.json")
    people = [Rater("Ada", key, 1), Rater("Béla", key, 2)]
    files = []
    for number, rater in enumerate(people, start=1):
        folder = output / f"browser-{number}"
        browser = Browser(args.driver, args.browser, folder, args.port + number)
        try:
            sheet = output / "kit" / "sheets" / f"rater-{number}.html"
            by = "keys" if number == 1 else "clicks"
            files.append(rate_sheet(browser, sheet, rater, by=by, output=output))
            errors = [entry["message"] for entry in browser.log("browser")]
            check(not errors, f"the browser complains: {errors}")
            schemes = {url.split(":")[0] for url in browser.requests()}
            schemes -= {"chrome", "chrome-untrusted"}  # the browser's own first tab
            check(schemes <= {"file", "data", "blob"}, f"the page asks for {sorted(schemes)}")
        finally:
            browser.close()
            shutil.rmtree(folder / "profile", ignore_errors=True)
    result = rate.collect(files, key=output / "kit" / "KEY.json", output=output / "trip.json")
    for rater in people:
        figures = result["raters"][rater.name]
        check(figures["gold/passed"]["value"] == 1, f"{rater.name} missed a gold check")
    value = result["rate"]["agreement"]["reasonability/alpha_interval"]["value"]
    check(0.2 < value < 1, f"alpha is {value}")
    return result


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", default="", help="run with a finished stage explain")
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--browser", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--driver", default=shutil.which("chromedriver") or "chromedriver")
    parser.add_argument("--port", type=int, default=9610, help="and the two after it")
    args = parser.parse_args()
    if pathlib.Path(args.output).exists():
        print(f"error: --output={args.output} exists", file=sys.stderr)
        return 2
    try:
        result = trip(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    alpha = result["rate"]["agreement"]["reasonability/alpha_ordinal"]
    print(f"Krippendorff's alpha, reasonability, ordinal: {alpha['value']:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
