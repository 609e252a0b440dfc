"""Screenshots of a report in headless Chromium, on a phone and a wide screen, light and dark.

    python experiments/report_screenshots.py --page=runs/quickstart/report.html --output=shots

Needs `chromium` and `chromedriver`, nothing else: it speaks the WebDriver protocol itself. Widths
are true widths: a headless window cannot be narrower than 500 pixels, so the device's metrics are
overridden. Beside the pictures it checks what pictures hide: whether the page is wider than the
screen, whether it asked for anything over the network, whether a script failed, whether the text
stands out enough from its ground (WCAG 2.2, level AA), and, where there are recommendations, how
long searching and turning pages take. Exit status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

WIDTHS = (390, 1440)
THEMES = ("light", "dark")
_TALLEST = 16000  # pixels of one picture; a longer page is cut into several

# What is wider than the screen, though not inside a box that scrolls by itself.
_OVERFLOW = """
const wide = [];
for (const node of document.body.querySelectorAll("*")) {
  const box = node.getBoundingClientRect();
  if (box.width === 0 || box.right <= innerWidth + 1) continue;
  let inside = false;
  for (let up = node.parentElement; up; up = up.parentElement) {
    const style = getComputedStyle(up);
    if (["auto", "scroll", "hidden", "clip"].includes(style.overflowX)) { inside = true; break; }
  }
  if (!inside) wide.push(`${node.tagName}.${node.className.baseVal ?? node.className}`);
}
return { width: document.scrollingElement.scrollWidth, screen: innerWidth, wide: wide.slice(0, 5) };
"""

# Texts whose contrast with the ground behind them is too low. Grounds are painted on a canvas of
# one pixel, which understands every notation of colours.
_CONTRAST = """
const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const painted = (colours) => {
  pixel.clearRect(0, 0, 1, 1);
  for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
  return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => {
    v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const poor = new Map();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const parent = node.parentElement;
  if (!node.textContent.trim() || !parent.checkVisibility()) continue;
  if (parent.closest("script, style, noscript, option, [hidden], :disabled")) continue;
  const style = getComputedStyle(parent);
  const grounds = [];
  for (let up = parent; up; up = up.parentElement) {
    grounds.unshift(getComputedStyle(up).backgroundColor);
  }
  const ink = parent.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const one = light(painted(["white", ...grounds]));
  const other = light(painted(["white", ...grounds, ink]));
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
  if (ratio < (large ? 3 : 4.5)) {
    const name = `${parent.tagName}.${parent.className.baseVal ?? parent.className}`;
    const told = node.textContent.trim().slice(0, 30);
    if (!poor.has(name)) poor.set(name, `${name} ${ratio.toFixed(2)} ${told}`);
  }
}
return [...poor.values()];
"""

_SPEED = """
const find = (id) => document.getElementById(id);
if (!find("pairs-next")) return null;
const timed = (act) => {
  const start = performance.now();
  act();
  return performance.now() - start;
};
const choose = (place) => {
  filter.selectedIndex = place;
  filter.dispatchEvent(new Event("change"));
};
const filter = find("pairs-filter");
const out = {
  next: timed(() => find("pairs-next").click()),
  filter: timed(() => choose(filter.options.length - 1)),
  all: timed(() => choose(0)),
};
find("pairs-search").value = "the";
out.search = timed(() => find("pairs-tools").requestSubmit());
find("pairs-search").value = "";
find("pairs-tools").requestSubmit();
const entry = performance.getEntriesByType("navigation")[0];
out.load = entry.domContentLoadedEventEnd;
scrollTo(0, 0);
return Object.fromEntries(Object.entries(out).map(([key, value]) => [key, Math.round(value)]));
"""


class Browser:
    """A headless browser, spoken to by the WebDriver protocol.

    Args:
      driver: address of a running chromedriver.
      binary: path of the browser's program.
    """

    def __init__(self, driver: str, binary: str):
        self._driver = driver
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options = {"binary": binary, "args": flags}
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{session['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._driver + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error

    def command(self, name: str, **arguments: Any) -> Any:
        """Runs a command of the browser's own protocol."""
        body = {"cmd": name, "params": arguments}
        return self._ask("POST", f"{self._session}/goog/cdp/execute", body)

    def open(self, address: str) -> None:
        """Loads a page."""
        self._ask("POST", f"{self._session}/url", {"url": address})

    def run(self, script: str) -> Any:
        """Runs a script in the page and returns its result."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Entries of a log since it was last read."""
        return self._ask("POST", f"{self._session}/se/log", {"type": kind})

    def close(self) -> None:
        """Ends the browser."""
        self._ask("DELETE", self._session)


@contextlib.contextmanager
def browser(driver: str, binary: str) -> Iterator[Browser]:
    """Starts driver and browser, and ends both."""
    process = subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        port = ""
        assert process.stdout is not None
        for line in process.stdout:
            if "successfully on port" in line:
                port = line.rsplit("port", 1)[1].strip(" .\n")
                break
        session = Browser(f"http://127.0.0.1:{port}", binary)
        try:
            yield session
        finally:
            session.close()
    finally:
        process.terminate()
        process.wait()


def metrics(page: Browser, width: int, height: int) -> None:
    """Makes the screen that wide."""
    page.command(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=2 if width < 600 else 1,
        mobile=width < 600,
    )


def shoot(page: Browser, width: int, target: pathlib.Path) -> list[pathlib.Path]:
    """Pictures of the whole page, cut where it is very long."""
    for old in target.parent.glob(f"{target.name}*.png"):
        old.unlink()
    height = page.run("return document.scrollingElement.scrollHeight")
    written = []
    for number, top in enumerate(range(0, height, _TALLEST)):
        clip = {"x": 0, "y": top, "width": width, "height": min(_TALLEST, height - top), "scale": 1}
        image = page.command(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )["data"]
        path = target.with_name(f"{target.name}{f'-{number}' if number else ''}.png")
        path.write_bytes(base64.b64decode(image))
        written.append(path)
    return written


def requests(page: Browser) -> list[str]:
    """Addresses that were asked for over a network."""
    urls = []
    for entry in page.log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = message["params"]["request"]["url"]
            if not address.startswith(("file:", "data:", "blob:")):
                urls.append(address)
    return urls


def check(page: Browser) -> list[str]:
    """Returns a message for each fault of the page that is open."""
    wrong = []
    problems = page.run(_OVERFLOW)
    if problems["width"] > problems["screen"] or problems["wide"]:
        wrong.append(f"wider than the screen: {problems}")
    wrong += [f"low contrast: {text}" for text in page.run(_CONTRAST)]
    wrong += [f"asked for {address}" for address in requests(page)]
    wrong += [entry["message"] for entry in page.log("browser") if entry["level"] == "SEVERE"]
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Takes the pictures; returns 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--page", type=pathlib.Path, required=True, help="report.html")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for pictures")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--chromedriver", default=shutil.which("chromedriver") or "chromedriver")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    failed = False
    with browser(args.chromedriver, args.chromium) as page:
        for theme in THEMES:
            for width in WIDTHS:
                height = 844 if width < 600 else 900
                metrics(page, width, height)
                page.command(
                    "Emulation.setEmulatedMedia",
                    features=[{"name": "prefers-color-scheme", "value": theme}],
                )
                page.open(args.page.resolve().as_uri())
                time.sleep(0.3)  # scripts of the page draw after it has loaded
                wrong = check(page)
                speed = page.run(_SPEED)
                paths = shoot(page, width, args.output / f"{width}-{theme}")
                failed = failed or bool(wrong)
                print(f"{width} {theme}: {', '.join(map(str, paths))}")
                print(f"  milliseconds: {speed}" if speed else "  no recommendations")
                print("\n".join(f"  {text}" for text in wrong) or "  checks passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
