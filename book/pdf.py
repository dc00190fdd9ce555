"""One PDF of a built book: python book/pdf.py BOOK OUT.

Sphinx makes one page of the book's sources, warnings being errors; headless Chromium, driven by
selenium, prints it: solutions unfolded, and three frames in an animation's place.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium import webdriver

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PREPARE = """
const done = arguments[0];
document.documentElement.dataset.theme = "light";
for (const name of ["toggle-hidden", "full-width", "tag_full-width"])
  document.querySelectorAll("." + name).forEach(e => e.classList.remove(name));
document.querySelectorAll("details").forEach(e => e.open = true);
for (const player of document.querySelectorAll(".animation")) {
  const picture = player.querySelector("img"), id = picture.id.replace("_anim_img", "");
  const frames = window["anim" + id].frames, last = frames.length - 1;
  player.replaceChildren(...[0, 1, 2].map(k => {
    const still = new Image();
    still.src = frames[Math.round(k * last / 2)].src, still.alt = picture.alt;
    return still;
  }));
}
const ready = [...document.images].map(i => i.decode().catch(() => i.alt + " does not load"));
Promise.all([MathJax.startup.promise, ...ready]).then(
  found => done(found.filter(Boolean)), error => done([String(error)]));
"""


def single_page(book: Path) -> Path:
    """The whole book as one HTML page; SystemExit where Sphinx has anything to complain of."""
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", str(book), "--builder", "singlehtml", "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True)
    page = book / "_build" / "singlehtml" / "intro.html"
    if done.returncode or not page.exists():
        print(done.stdout[-6000:], done.stderr[-6000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"error: no single page was made of {book}")
    return page


def printed(page: Path) -> bytes:
    """The page as Chromium prints it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"error: printing needs one of: {', '.join(BROWSERS)}")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    driver_at = shutil.which("chromedriver")
    with tempfile.TemporaryDirectory() as profile:
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
                         f"--user-data-dir={profile}"):  # fmt: skip
            options.add_argument(argument)
        driver = webdriver.Chrome(options, webdriver.ChromeService(driver_at))
        try:
            driver.set_script_timeout(300)
            driver.get(page.resolve().as_uri())
            if found := driver.execute_async_script(PREPARE):
                raise SystemExit(f"error: {found[0]}")
            paper = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True}
            sheet = driver.execute_cdp_cmd("Page.printToPDF", paper | {"scale": 0.8})
        finally:
            driver.quit()
    return base64.b64decode(sheet["data"])


if __name__ == "__main__":
    source, target = (Path(argument) for argument in sys.argv[1:3])
    partial = target.with_suffix(".partial")
    partial.write_bytes(printed(single_page(source)))
    os.replace(partial, target)
    print(f"the book on paper: {target.resolve()}")
