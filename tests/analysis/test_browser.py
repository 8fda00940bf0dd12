"""The page in a real browser: what only scripts, styles and a screen can show."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from condconv.analysis import Intervention, choose_pictures, make_picture, render_page
from tests.analysis.samples import layer, recorded, routed_block

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

NASTY = "<script>document.title='harmed'</script>"
CLASSES = (NASTY, "<img src=x onerror=\"document.title='harmed'\">", "plain")


def make_page(path):
    network = nn.Sequential(layer(), routed_block(), nn.Sequential(layer()))
    inputs, targets = torch.rand(30, 2), torch.arange(30) % 3
    report = recorded(network, inputs, targets, CLASSES)
    each = [Intervention("mean", (record.name,), 3000, 3000, 2000, 0, 0) for record in report.routings]
    joint = Intervention("mean", tuple(record.name for record in report.routings), 3000, 2800, 1900, 100, 200)
    whole = (Intervention("learned", (), 30, 30, 20, 0, 0), Intervention("mean", (), 30, 20, 18, 1, 3))
    report = replace(report, interventions=(*whole, *each, joint))
    image = Image.new("RGB", (40, 20), "red")
    pictures = {number: make_picture(image, f"{NASTY}{number}") for number in choose_pictures(report)}
    path.write_text(
        render_page(report, title=NASTY, pictures=pictures, command="condconv make-static x"), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # Inside a container there is neither a sandbox of Chromium's nor a GPU.
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    torch.manual_seed(0)
    return make_page(tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture
def open_page(browser, address):
    """Opens the page; whatever it says, fails or asks for is an error at the end."""
    said, asked, contexts = [], [], []

    def open_(width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#chart-heatmap .heatmaplayer image")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {address}


def heatmap(page):
    return page.evaluate("document.getElementById('chart-heatmap').data[0].z")


def test_the_selector_changes_charts_and_experts(open_page):
    page = open_page()
    assert page.locator("#layer").input_value() == "2"  # the last
    last, summary = heatmap(page), page.inner_text("#layer-summary")
    page.select_option("#layer", "1")
    assert heatmap(page) != last
    assert page.inner_text("#layer-summary") != summary
    assert "Shared by 1.first, 1.second" in page.inner_text("#layer-summary")
    assert page.locator("#experts .expert").count() == 2
    assert page.locator("#layer-charts figure").count() == 3


def test_hovering_says_class_expert_and_weight(open_page):
    page = open_page()
    page.locator("#chart-heatmap").scroll_into_view_if_needed()
    box = page.locator("#chart-heatmap .nsewdrag").bounding_box()
    # The upper left cell: the first class, expert 1
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 6)
    text = page.locator("#chart-heatmap .hoverlayer").text_content(timeout=5000) or ""
    page.wait_for_function("document.querySelector('#chart-heatmap .hovertext') !== null")
    text = page.locator("#chart-heatmap .hoverlayer").text_content()
    first = page.evaluate("document.getElementById('chart-heatmap').data[0].y[0]").replace("<br>", "")
    assert f"expert 1: {heatmap(page)[0][0]:.3f}" in text
    shown = first.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&#x27;", "'")
    assert shown in text


def test_pictures_load(open_page):
    page = open_page()
    sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.naturalHeight])")
    assert len(sizes) == 20  # ten for each of two experts
    assert {tuple(size) for size in sizes} == {(40, 20)}


def test_names_are_shown_and_harmless(open_page):
    page = open_page()
    assert page.title() == NASTY
    assert page.inner_text("h1") == NASTY
    assert NASTY in page.locator("#experts .classes").first.inner_text()
    assert NASTY[:20] in page.locator("#chart-heatmap .yaxislayer-above").text_content()
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(open_page, width):
    page = open_page(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for index in range(3):
        page.select_option("#layer", str(index))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wider = page.evaluate(
        "[...document.querySelectorAll('.chart .main-svg, .card *')].filter(each =>"
        " each.getBoundingClientRect().right > each.closest('.chart, .card').getBoundingClientRect().right"
        ").length"
    )
    assert wider == 0


def luminance(page, of):
    """0 for black, 1 for white, of a colour such as rgb(1, 2, 3)."""
    colour = page.evaluate(of)
    return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 765


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_light_and_dark(open_page, scheme, dark):
    page = open_page(scheme=scheme)
    back = luminance(page, "getComputedStyle(document.body).backgroundColor")
    text = luminance(page, "getComputedStyle(document.body).color")
    tick = luminance(page, "getComputedStyle(document.querySelector('#chart-share .xtick text')).fill")
    assert (back < 0.2, text > 0.8, tick > 0.8) == (dark, dark, dark)
    before = page.evaluate("getComputedStyle(document.querySelector('#chart-share .xtick text')).fill")
    page.emulate_media(color_scheme="light" if dark else "dark")  # the charts follow while the page is open
    page.wait_for_function(
        "colour => getComputedStyle(document.querySelector('#chart-share .xtick text')).fill !== colour", arg=before
    )
    other = luminance(page, "getComputedStyle(document.querySelector('#chart-share .xtick text')).fill")
    assert (other > 0.8) != dark


def press_tab_until(page, reached):
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate(reached):
            assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
            return
    raise AssertionError(f"the keyboard does not reach: {reached}")


def test_the_keyboard_reaches_the_selector(open_page):
    page = open_page()
    press_tab_until(page, "document.activeElement.id === 'layer'")
    before = heatmap(page)
    page.keyboard.press("ArrowUp")
    assert page.locator("#layer").input_value() == "1"
    assert heatmap(page) != before


SAYS = "text => document.getElementById('spoken').textContent.endsWith(text)"


def test_the_keyboard_reads_the_values(open_page):
    page = open_page()
    press_tab_until(page, "document.activeElement.id === 'chart-heatmap'")
    first, second = page.evaluate("document.getElementById('chart-heatmap').data[0].z")[:2]
    for key, expected in (
        ("ArrowDown", f"expert 1: {first[0]:.3f}"),
        ("ArrowUp", f"expert 1: {first[0]:.3f}"),  # there is nothing above
        ("ArrowRight", f"expert 2: {first[1]:.3f}"),
        ("ArrowDown", f"expert 2: {second[1]:.3f}"),
    ):
        page.keyboard.press(key)
        page.wait_for_function(SAYS, arg=expected)
        assert page.locator("#chart-heatmap .hoverlayer").text_content().endswith(expected)
    page.keyboard.press("Tab")
    assert page.inner_text("#spoken") == ""
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    within = page.evaluate("document.getElementById('chart-spread').data[1].y[0]")
    page.wait_for_function(SAYS, arg=f"expert 1: {within:.3f} within a class")


def test_the_keyboard_switches_curves(open_page):
    page = open_page()
    shown = "document.getElementById('chart-effective').data.map(trace => trace.visible ?? true)"
    press_tab_until(page, "document.activeElement.getAttribute('aria-label') === 'over all images'")
    for key, pressed, visible in (("Enter", "false", [True, "legendonly"]), (" ", "true", [True, True])):
        page.keyboard.press(key)
        page.wait_for_function(f"() => document.activeElement.getAttribute('aria-pressed') === '{pressed}'")
        assert page.evaluate(shown) == visible


CONTRASTS = """() => {
  const light = ([r, g, b]) => [r, g, b].map(part => part / 255)
    .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const parts = colour => colour.match(/[0-9.]+/g).map(Number);
  const found = [];
  for (const each of document.querySelectorAll('body *')) {
    if (!each.getClientRects().length || each.closest('script, .hoverlayer, .spoken, option')) continue;
    if (![...each.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
    let back = each;
    while (back && (parts(getComputedStyle(back).backgroundColor)[3] ?? 1) === 0) back = back.parentElement;
    const style = getComputedStyle(each);
    const text = each.namespaceURI.endsWith('svg') ? style.fill : style.color;
    const [low, high] = [text, getComputedStyle(back).backgroundColor].map(parts).map(light).sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), each.textContent.slice(0, 30)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_told_from_its_background(open_page, scheme):
    """WCAG 2 asks for a contrast of 4.5."""
    page = open_page(scheme=scheme)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [each for each in found if each[0] < 4.5] == []


def test_long_names_leave_room_on_a_phone(open_page):
    narrow = open_page(360)
    labels = narrow.locator("#chart-heatmap .ytick text").all_text_contents()
    assert max(map(len, labels)) <= 10
    map_width = narrow.locator("#chart-heatmap .nsewdrag").bounding_box()["width"]
    assert map_width > 100
    assert max(map(len, open_page(1280).locator("#chart-heatmap .ytick text").all_text_contents())) == 22


def test_paper_is_light_and_not_too_wide(open_page):
    page = open_page(scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    tick = "getComputedStyle(document.querySelector('#chart-share .xtick text')).fill"
    width = "document.querySelector('#chart-share .main-svg').getBoundingClientRect().width"
    assert luminance(page, tick) < 0.2
    assert page.evaluate(width) == 640
    page.emulate_media(media="print", color_scheme="dark")
    assert luminance(page, "getComputedStyle(document.body).color") < 0.2
    assert not page.locator("nav").is_visible()
    page.emulate_media(media="screen", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert luminance(page, tick) > 0.8
    room = page.locator("#chart-share").bounding_box()["width"]
    page.wait_for_function(f"() => Math.abs({width} - {room}) < 2")


def test_what_a_screen_reader_gets(open_page):
    page = open_page()
    assert page.locator("[role=img]").count() == page.locator("[role=img][aria-label]").count() >= 7
    assert page.locator("img:not([alt])").count() == 0
    assert page.get_by_label("Routing of").input_value() == "2"
    assert page.locator("th[scope=row]").all_inner_texts()[0].startswith("as learned")


def test_advice_and_its_command(open_page):
    page = open_page()
    assert page.inner_text("#advice pre") == "condconv make-static x"
    assert "All 3 advised together, on 3,000 images: 63.33 % right, a change of −3.33" in page.inner_text("#advice")
    page.locator("#verdict-list a").first.click()
    assert page.locator("#layer").input_value() == "0"
