"""The page in a browser, over a real server: by keyboard, on a phone and a desk, light and dark."""

from __future__ import annotations

import os
import re
import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=60_000)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SHOTS = os.environ.get("ZAYA_SCREENSHOTS")
MEASURE = """() => {
  const root = document.documentElement, seen = [];
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect();
    const said = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!said || !box.width || !box.height || e.closest('option, svg, .hidden')) continue;
    let paper = e;
    while (paper && getComputedStyle(paper).backgroundColor === 'rgba(0, 0, 0, 0)')
      paper = paper.parentElement;
    if (e.disabled) continue;
    seen.push([e.tagName + '.' + e.className, getComputedStyle(e).color,
               getComputedStyle(paper ?? document.body).backgroundColor]);
  }
  const small = [...document.querySelectorAll('button, input, select, textarea')]
    .filter(e => e.getBoundingClientRect().height > 0 && e.getBoundingClientRect().height < 32)
    .map(e => e.id || e.textContent);
  const nameless = [...document.querySelectorAll('input, select, textarea')]
    .filter(e => !e.labels?.length && !e.getAttribute('aria-label')).map(e => e.id);
  return {wide: root.scrollWidth - root.clientWidth, seen, small, nameless};
}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, CHROME is not set")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=found, args=list(ARGUMENTS)
        )
        launched.set_default_timeout(60_000)
        yield launched
        launched.close()


@pytest.fixture
def tab(browser, server):
    """The page, with what it asked for and what went wrong in it."""
    tab = browser.new_page()
    tab.asked, tab.faults = [], []
    tab.on("request", lambda r: tab.asked.append(r.url) if not r.url.startswith("data:") else None)
    tab.on("console", lambda m: tab.faults.append(m.text) if m.type in ("error", "warning") else 0)
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.goto(server.url + "/")
    expect(tab.locator("#model")).to_have_text("tiny")
    yield tab
    tab.close()


def luminance(colour):
    """Relative luminance (WCAG 2.2) of an `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def look(tab, name):
    """Can it be read anywhere?"""
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        for width in (360, 1280):
            tab.set_viewport_size({"width": width, "height": 800})
            if SHOTS:
                tab.screenshot(path=f"{SHOTS}/{name}-{scheme}-{width}.png")
            seen = tab.evaluate(MEASURE)
            where = f"{name}, {scheme}, {width} pixels"
            assert seen["wide"] <= 0, f"{where}: scrolls sideways"
            assert not seen["small"], f"{where}: too small to touch: {seen['small']}"
            assert not seen["nameless"], where
            faint = [x for x in seen["seen"] if contrast(x[1], x[2]) < 4.5]
            assert not faint, f"{where}: {faint}"
    tab.set_viewport_size({"width": 1280, "height": 900})


def test_a_chat_by_keyboard(tab, server):
    assert tab.evaluate("document.activeElement.id") == "question"
    tab.keyboard.press("Tab")  # on to the buttons, and back
    tab.keyboard.press("Shift+Tab")
    tab.evaluate("document.getElementById('max_tokens').value = '24'")
    tab.keyboard.type("What is <b>2+2</b>?")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".turn.assistant .end:not(:empty), #speed:not(:empty)")
    expect(tab.locator("#send")).to_have_text("Send")
    assert tab.text_content(".turn.user") == "What is <b>2+2</b>?"
    assert tab.text_content(".turn.assistant .content")
    assert re.search(r"[0-9]+ tokens, .*first after", tab.text_content("#speed"))
    look(tab, "chat")
    tab.keyboard.type("more")
    tab.keyboard.press("Enter")
    expect(tab.locator(".turn.assistant")).to_have_count(2)
    expect(tab.locator("#send")).to_have_text("Send")
    with tab.expect_response("**/v1/chat/completions"):
        tab.click("#again")
    expect(tab.locator("#send")).to_have_text("Send")
    assert tab.locator(".turn").count() == 4
    tab.click("#clear")
    assert tab.locator(".turn").count() == 0
    assert not tab.faults
    assert {url.split("/", 3)[3] for url in tab.asked} == {"", "v1/models", "v1/chat/completions"}


def speak(tab, events, wait):
    """Has the page hear these events in place of a server; it waits for `go()` before one."""
    tab.evaluate(
        """([events, wait]) => {
          window.fetch = async (url, options) => new Response(new ReadableStream({
            async start(controller) {
              for (const [i, event] of events.entries()) {
                if (i === wait) await new Promise(go => { window.go = go; });
                const line = 'data: ' + JSON.stringify(event) + '\\n\\n';
                controller.enqueue(new TextEncoder().encode(line));
              }
              options.signal.addEventListener('abort', () =>
                controller.error(new DOMException('', 'AbortError')));
            }}));
        }""",
        [events, wait],
    )


def test_votes_appear_as_they_are_given(tab):
    """A tiny model gives no answers, so these are told as the server would tell them."""

    def rollout(number, answer, finish="eos"):
        return {"event": "rollout", "rollout": number, "tokens": 50, "prompt_tokens": 9,
                "finish": finish, "answer": answer, "tail": "so it is", "cut": True}  # fmt: skip

    def votes(**given):
        return {"event": "votes", "votes": [
            {"answer": a.strip("_"), "voters": v, "finished": len(v)} for a, v in given.items()
        ]}  # fmt: skip

    cost = {"longest_prompt": 99}
    stage = {"event": "stage", "rollouts": 4, "budget": 64}
    told = [
        stage | {"stage": 0, "name": "round 0", "shown": [[]] * 4},
        {"event": "text", "rollout": 2, "text": "Let me see"},
        rollout(0, "25"), rollout(1, "24"), rollout(2, None, "length"), rollout(3, "25"),
        votes(_25=[0, 3], _24=[1]),
        stage | {"stage": 1, "name": "round 1", "shown": [[0, 1], [1, 2], [0, 3], [2, 3]]},
        *(rollout(i, "25") for i in range(4)), votes(_25=[0, 1, 2, 3]),
        {"event": "result", "answer": "25", "decoded": 400, "seed": 1, "costs": [cost, cost]},
    ]  # fmt: skip
    tab.click("#tab-rsa")
    speak(tab, [{"choices": [], "rsa": event} for event in told], wait=7)
    tab.fill("#problem", "How many primes are below 100?")
    tab.click("#solve")
    rows = tab.locator(".votes li")
    expect(rows).to_have_count(3)
    assert [" ".join(row.split()) for row in rows.all_inner_texts()] == [
        "25 2", "24 1", "no answer 1",
    ]  # fmt: skip
    widths = [bar.bounding_box()["width"] for bar in rows.locator("i").all()]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.1)
    assert tab.is_hidden("#result")
    tab.evaluate("window.go()")
    expect(tab.locator("#answer")).to_have_text("25")
    assert tab.locator(".cell.cut").count() == 1 and tab.locator(".cell.finished").count() == 7
    assert "D(q) = 400" in tab.text_content("#account")
    tab.locator(".stage").nth(1).locator(".cell").nth(2).hover()
    assert tab.locator(".cell.source b").all_inner_texts() == ["● 1", "● 4"]
    look(tab, "votes")


def test_reasoning_is_seen_while_it_is_written_and_can_be_stopped(tab):
    """A tiny model never thinks, so the answer is spoken here as a server would speak it."""
    events = [{"role": "assistant", "content": ""}, {"reasoning_content": "first this "},
              {"reasoning_content": "then <i>that</i>"}, {"content": "So: "},
              {"content": "four"}]  # fmt: skip
    speak(tab, [{"choices": [{"index": 0, "delta": delta}]} for delta in events], wait=3)
    tab.fill("#question", "2+2?")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".thought:has-text('then')")
    assert tab.locator("details[open] .thought").count() == 1
    tab.evaluate("window.go()")
    tab.wait_for_selector(".content:has-text('So: four')")
    assert tab.text_content(".thought") == "first this then <i>that</i>"
    assert tab.locator("details[open]").count() == 0
    assert "Thought for" in tab.text_content(".turn summary")
    tab.keyboard.press("Escape")
    tab.wait_for_selector(".end:has-text('stopped')")
    assert tab.is_hidden("#fault")


def script(tab, *answers):
    """Has the page hear these in place of a server, one for each question: a text, or None for a
    failure. `window.sent` has the conversations that it sends."""
    tab.evaluate(
        """answers => {
          window.sent = [];
          window.fetch = async (url, options) => {
            window.sent.push(JSON.parse(options.body).messages.map(turn => turn.content));
            const said = answers.shift();
            if (said === null)
              return new Response('{"error": {"message": "no room"}}', { status: 429 });
            const event = { choices: [{ index: 0, delta: { content: said } }] };
            return new Response('data: ' + JSON.stringify(event) + '\\n\\ndata: [DONE]\\n\\n');
          };
        }""",
        list(answers),
    )


def test_again_asks_the_last_question_once_whatever_became_of_those_before(tab):
    script(tab, None, "two", "two!", None, "three", "")

    def said(count):
        expect(tab.locator("#send")).to_have_text("Send")
        sent = tab.evaluate("window.sent")
        assert len(sent) == count
        return sent[-1]

    def ask(text, count):
        tab.fill("#question", text)
        tab.keyboard.press("Enter")
        return said(count)

    def again(count):
        tab.click("#again")
        return said(count)

    assert ask("1?", 1) == ["1?"]  # fails
    assert ask("2?", 2) == ["2?"]
    assert again(3) == ["2?"]
    assert ask("3?", 4) == ["2?", "two!", "3?"]  # fails
    assert again(5) == ["2?", "two!", "3?"]
    assert again(6) == ["2?", "two!", "3?"]  # says nothing
    assert tab.locator(".turn.user").all_inner_texts() == ["1?", "2?", "3?"]


def test_a_run_of_rsa_is_watched(tab):
    tab.focus("#tab-chat")
    tab.keyboard.press("ArrowRight")
    assert tab.is_visible("#rsa") and tab.is_hidden("#chat")
    numbers = {"population": 5, "candidates": 2, "rounds": 2, "tail": 8, "budget": 16,
               "final_budget": 20}  # fmt: skip
    assert int(tab.input_value("#budget")) < 1024  # the preset was made to fit the model
    for name, value in numbers.items():
        tab.fill(f"#{name}", str(value))
    tab.evaluate("document.getElementById('seed').value = '3'")
    tab.fill("#problem", "How many primes are below 100?")
    tab.click("#solve")
    tab.wait_for_selector("#result:not([hidden])")
    expect(tab.locator("#solve")).to_have_text("Solve")
    assert tab.locator(".stage").count() == 3
    assert tab.locator(".cell").count() == 15
    assert tab.locator(".cell.finished, .cell.cut").count() == 15
    assert tab.locator(".votes li").count() >= 3  # of each round, at least that nobody answered
    assert tab.locator("#lines path").count() == 2 * 5 * 2
    assert "D(q) = " in tab.text_content("#account")
    tab.locator(".stage").nth(1).locator(".cell").first.focus()
    assert tab.locator(".cell.source").count() == 2
    assert tab.locator("#lines path.on").count() == 2
    tab.keyboard.press("Enter")
    assert tab.is_visible("#rollout")
    assert "Was shown the tails of" in tab.text_content(".sources")
    assert tab.text_content("#rollout .tail").strip("… ")
    assert "written" in tab.text_content(".facts")
    look(tab, "rollout")
    tab.keyboard.press("Escape")
    assert tab.is_hidden("#rollout")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    assert "round 2, rollout 2" in tab.evaluate("document.activeElement.getAttribute('aria-label')")
    look(tab, "rsa")
    assert not tab.faults


def test_faults_are_told(tab):
    tab.click("#tab-rsa")
    tab.fill("#problem", "x")
    tab.fill("#candidates", "9")
    tab.fill("#population", "3")
    tab.click("#solve")
    tab.wait_for_selector("#fault:not([hidden])")
    assert "candidates = 9 of population = 3" in tab.text_content("#fault")
    tab.keyboard.press("Escape")
    tab.click("#open-settings")
    assert tab.is_visible("#settings")
    look(tab, "settings")
