"""The report of a run, as text and in a real browser."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.reporting.browser import Browser, find_browser
from megatron_pixel.reporting.charts import Mark, Series, chart, nice_axis, number, smoothed, thinned
from megatron_pixel.reporting.report_file import write_text
from megatron_pixel.reporting.report_page import report_page
from tests.reporting import made_up_run

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (360, 768, 1440)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_run.make(tmp_path_factory.mktemp("runs") / "made-up")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report_page(run, now=made_up_run.BEGIN + 500)


class Structure(HTMLParser):
    """Finds tags that are not closed, and every address that the page asks for."""

    VOID = ("meta", "link", "img", "source", "br", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert structure.addresses
    assert all(address.startswith("data:") for address in structure.addresses)
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_tells_the_run(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))
    text = " ".join(text.split())
    for said in (
        "made-up",
        "150 of 300 steps",
        "316k parameters",
        "Loss, pair patches",
        "Loss by source, pixel patches",
        "Gradient norm by stage",
        "450 tokens/s",
        "40.0% of the bf16 peak",
        "1 restarts",
        "rank 2 of 4: SIGKILL &lt;i&gt;",
        "step 90 skipped",
        "&lt;greek&gt;",
        "global_batch_rows",
        "Row 0 of pixel:english, 60 patches.",
        "Attention of layer 2 at step 150",
        "0.50 s",
    ):
        assert said in text, said
    assert page.count('<figure class="page') == 3, "two pages and one attention map"


def test_where_the_time_went_adds_up(page: str) -> None:
    section = page[page.index("Where the time went") :]
    shares = [float(share) for share in re.findall(r"([\d.]+)%</span>", section[: section.index("</section>")])]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    # 150 steps of 2 s within the 310 s from the first start to the last line.
    assert "backward<span>00:02:45, 53.2%" in section


def test_a_run_without_pages_starts_and_evaluations(tmp_path: Path) -> None:
    run = made_up_run.make(tmp_path / "bare", 10)
    (run / "logs" / "sessions.jsonl").unlink()
    (run / "logs" / "pretrain.log").unlink()
    page = report_page(run)
    for absent in ("Sample pages", "Starts and ends", "Checkpoints", "Troubles", "Held-out losses"):
        assert f"<h2>{absent}" not in page
    (run / "metrics.jsonl").unlink()
    assert "<h2>Settings" in report_page(run)


def test_pages_that_the_curves_do_not_know_are_left_out(tmp_path: Path) -> None:
    run = made_up_run.make(tmp_path / "run", 60)
    made_up_run.save_pages(run, 55, [made_up_run.page(0, 55)])
    (run / "pages" / "step-00000050.npz").write_bytes(b"damaged")
    assert "Sample pages" not in report_page(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        report_page(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "report.html", "x")


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0, 10, [0, 2.5, 5, 7.5, 10]), (0.13, 0.87, [0, 0.2, 0.4, 0.6, 0.8, 1])]
)
def test_axes_end_at_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert nice_axis(low, high).ticks == pytest.approx(ticks)


def test_an_axis_of_one_value_has_room() -> None:
    axis = nice_axis(3.0, 3.0)
    assert axis.low < 3.0 < axis.high


def test_numbers_are_short() -> None:
    values = (0, 0.5, 1234.5, 12345, 2.5e6, 3e9, 0.0004)
    assert [number(v) for v in values] == ["0", "0.5", "1,234", "12.3k", "2.5M", "3G", "4.00e-04"]


def test_long_curves_are_averaged() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_001)]
    few = thinned(points, 100)
    assert len(few) <= 100
    assert few[-1][0] == 10_000
    assert all(abs(y - 0.5) < 0.1 for _, y in few[:-1])
    assert smoothed([(0.0, 4.0), (1.0, 4.0), (2.0, 4.0)]) == [(0.0, 4.0), (1.0, 4.0), (2.0, 4.0)]


def test_a_chart_draws_points_where_they_belong() -> None:
    line = Series("a", "blue", [(0.0, 0.0), (10.0, 8.0)])
    drawn = chart(
        "T", [line, Series("empty", "red", [])], marks=[Mark(5.0, "restart", "x"), Mark(99.0, "restart", "y")]
    )
    (path,) = re.findall(r'<path class="blue line" d="M([^"]+)"', drawn)
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in path.split("L"))
    assert (x0, y0) == (0.0, 400.0)
    assert x1 == pytest.approx(1000 / 1.012, abs=0.1)
    assert y1 == pytest.approx(0.0)
    assert drawn.count('class="restart"') == 1
    assert "empty" not in drawn
    assert chart("T", [Series("empty", "red", [])]) == ""


def test_a_wild_point_does_not_flatten_the_curve() -> None:
    wild = [(float(x), 1.0 + 0.001 * x) for x in range(300)]
    wild[7] = (7.0, 500.0)
    drawn = chart("T", [Series("a", "blue", wild, "noisy")])
    highest = max(float(t.replace(",", "")) for t in re.findall(r'class="y"[^>]*>([\d.,]+)<', drawn))
    assert highest < 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip(
            "no Chromium or Chrome here: the report is not looked at in a browser (launcher/system_packages.sh)"
        )
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_text(path, page)
    return path


OUTSIDE = """
[...document.querySelectorAll("h1, h2, h3, p, .figures div, figcaption, .canvas, .canvas span, table, dd, footer")]
  .filter(e => !e.closest(".scroll") && e.getClientRects().length)
  .filter(e => { const b = e.getBoundingClientRect(); return b.left < -0.5 || b.right > innerWidth + 0.5; })
  .map(e => e.className + ": " + e.textContent.slice(0, 40))
"""
CONTRAST = """
(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 10.02 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.9) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll("h1, h2, h2 + p, h3, small, span, b, li, td, th, dt, dd, footer, figcaption")]
    .filter(e => e.getClientRects().length && e.textContent.trim())
    .map(e => { const a = light(parse(getComputedStyle(e).color)), b = light(ground(e));
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName + " " + e.textContent.slice(0, 30)]; })
    .sort((a, b) => a[0] - b[0])[0];
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_in_a_browser(browser: Browser, file: Path, width: int, dark: bool) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    browser.show(file, width, dark)
    assert browser.complaints == []
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data"}
    assert browser.ask("document.documentElement.scrollWidth") <= width, "the page must not scroll sideways"
    assert browser.ask(OUTSIDE) == []
    assert browser.ask("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    shade = sum(map(int, re.findall(r"\d+", ground)[:3]))
    assert shade < 150 if dark else shade > 650
    least, where = browser.ask(CONTRAST)
    assert least > 4.4, f"{where}: a contrast of {least:.2f}"
    charts = browser.ask("document.querySelectorAll('figure.chart').length")
    assert charts >= 12
    columns = browser.ask("new Set([...document.querySelectorAll('figure.chart')].map(f => f.offsetLeft)).size")
    assert columns == {360: 1, 768: 1, 1440: 3}[width]


def test_the_pointer_shows_values(browser: Browser, file: Path) -> None:
    browser.show(file, 1000)
    browser.ask("window.box = document.querySelector('.canvas').getBoundingClientRect()")
    left, top, width = browser.ask("[box.left, box.top, box.width]")
    browser.point(left + width * 0.5 / 1.012, top + 20)
    tip = browser.ask("document.querySelector('.tip').innerText")
    assert re.match(r"step 7[56]\n", tip), tip
    assert "training" in tip
    assert "held out" in tip
    browser.point(left - 30, top - 100)
    assert browser.ask("document.querySelector('.tip')") is None


def test_a_picture_of_the_page(browser: Browser, file: Path, tmp_path: Path) -> None:
    from PIL import Image

    browser.show(file, 800)
    browser.picture(tmp_path / "page.png", 500)
    with Image.open(tmp_path / "page.png") as image:
        assert image.size == (800, 500)
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50


def test_the_program(run: Path, tmp_path: Path) -> None:
    words = [sys.executable, "megatron_pixel/report.py", run, "--output", tmp_path / "page.html"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
