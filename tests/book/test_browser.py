"""The built book in a real browser: headless Chromium reads every page, wide and narrow.

Of the books in runs/ the one built last is read, served from this machine.
"""

import functools
import http.server
import json
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
BOOKS = sorted(ROOT.glob("runs/*/book/_build/html"), key=lambda p: p.stat().st_mtime)
WIDTHS = {"phone": 390, "desktop": 1280}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here"),
    pytest.mark.skipif(not BOOKS, reason="no built book in runs/; `make book` makes one"),
    pytest.mark.xdist_group("browser"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    """The address of the book, served from a thread."""
    handler = functools.partial(Quiet, directory=BOOKS[-1])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def pages():
    """Every page of the book, as its address from the root; search is opened by its own test, and
    index.html only leads on to the introduction, at a moment of its own."""
    found = (path.relative_to(BOOKS[-1]).as_posix() for path in BOOKS[-1].rglob("*.html"))
    left_out = {"search.html", "index.html"}
    return sorted(p for p in found if not p.startswith("_") and p not in left_out)


def resize(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def read(browser, address):
    """Open a page, wait till it is drawn; the addresses it asked for and its complaints."""
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(address)
    browser.execute_async_script(
        "const done = arguments[0];"
        "Promise.all([window.MathJax?.startup?.promise, document.fonts.ready])"
        ".then(() => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
    )
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    log = browser.get_log("browser")
    return asked, [e["message"] for e in log if e["level"] == "SEVERE"]


def past_the_edge(browser, width):
    """The elements seen that reach further right than `width`, px, for a failure's message; closed
    drawers lie there unseen."""
    return browser.execute_script(
        "return [...document.querySelectorAll('body *')]"
        ".filter(e => e.checkVisibility({visibilityProperty: true}))"
        ".filter(e => e.getBoundingClientRect().right > arguments[0] + 1)"
        ".map(e => e.outerHTML.slice(0, 120)).slice(-5)",
        width,
    )


@pytest.mark.parametrize("page", pages() if BOOKS else [])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_reads_well(browser, site, page, width):
    """No complaint, no request off the machine, mathematics typeset, nothing wider than it."""
    resize(browser, WIDTHS[width])
    asked, complaints = read(browser, site + page)
    assert site + page in asked
    assert not complaints
    own = (site, "data:", "blob:", "about:", "chrome")  # the last: the empty tab's own parts
    assert not [a for a in asked if not a.startswith(own)]
    formulas = browser.find_elements("css selector", ".math")
    assert all(f.find_elements("css selector", "mjx-container svg") for f in formulas)
    assert not browser.find_elements("css selector", "mjx-merror, [data-mjx-error]")
    drawn = browser.execute_script("return document.scrollingElement.scrollWidth")
    assert drawn <= WIDTHS[width], past_the_edge(browser, WIDTHS[width])
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).length"
    assert browser.execute_script(broken) == 0


def test_pictures_say_what_they_show(browser, site):
    """Every picture has words for who cannot see it; myst-nb's own are the file's name."""
    script = "return [...document.querySelectorAll('article img')].map(i => i.alt)"
    wordless = {}
    for page in pages():
        read(browser, site + page)
        bad = [alt for alt in browser.execute_script(script) if len(alt) < 20 or "_images/" in alt]
        wordless |= {page: len(bad)} if bad else {}
    assert not wordless


def test_animations_step(browser, site):
    resize(browser, WIDTHS["desktop"])
    stepped = 0
    for page in pages():
        read(browser, site + page)
        for animation in browser.find_elements("css selector", ".animation"):
            picture = animation.find_element("tag name", "img")
            slider = animation.find_element("css selector", "input[type=range]")
            step = animation.find_element("css selector", "button[title='Next frame']")
            browser.execute_script("arguments[0].value = 0; arguments[0].oninput()", slider)
            first = picture.get_attribute("src")
            browser.execute_script("arguments[0].click()", step)
            assert slider.get_property("value") == "1"
            assert picture.get_attribute("src") != first
            stepped += 1
    assert stepped >= 4


def test_internal_links_lead_somewhere(browser, site):
    """The page is there, and the place on the page."""
    gather = (
        "return [[...document.querySelectorAll('[id]')].map(e => e.id),"
        " [...document.links].map(a => a.href)]"
    )
    places, links = {}, set()
    for page in pages():
        read(browser, site + page)
        ids, targets = browser.execute_script(gather)
        places[page] = set(ids)
        links |= {(page, t) for t in targets if t.startswith(site)}
    assert len(links) > 100
    for page, target in links:
        address, place = urldefrag(target)
        name = unquote(urlsplit(address).path).lstrip("/")
        assert (BOOKS[-1] / name).is_file(), f"{page} links to {name}, which is not there"
        if place and name in places:
            assert unquote(place) in places[name], f"{page} links to {name}#{place}"


def test_search_finds_a_word(browser, site):
    """Typed into the field that the sidebar's button opens."""
    from selenium.webdriver.support.ui import WebDriverWait

    resize(browser, WIDTHS["desktop"])
    read(browser, f"{site}intro.html")
    buttons = browser.find_elements("css selector", "button.search-button-field")
    next(button for button in buttons if button.is_displayed()).click()
    browser.find_element("css selector", "#pst-search-dialog input").send_keys("adjoint\n")
    found = WebDriverWait(browser, 20).until(
        lambda b: b.find_elements("css selector", "#search-results li a")
    )
    assert any(re.search("03_ode", link.get_attribute("href")) for link in found)
