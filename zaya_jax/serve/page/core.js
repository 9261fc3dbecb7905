'use strict';
// Shared by both tabs. What a model writes is only ever set as text.

const $ = id => document.getElementById(id);
const make = (tag, className = '', text = '') =>
  Object.assign(document.createElement(tag), { className, textContent: text });
const whole = new Intl.NumberFormat('en');
let model = null;    // as /v1/models describes it
let running = null;  // the AbortController of what is under way

function fault(text) { $('fault').textContent = text; $('fault').hidden = !text; }

function headers() {
  const key = $('key').value.trim();
  return { 'Content-Type': 'application/json', ...(key && { Authorization: `Bearer ${key}` }) };
}

async function failure(response) {
  try { return (await response.json()).error.message; }
  catch { return `the server answered ${response.status}`; }
}

// The events of a streamed answer, one JSON object each.
async function* stream(body, signal) {
  const response = await fetch('v1/chat/completions', {
    method: 'POST', headers: headers(), signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw new Error(await failure(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error('the connection broke off');
    const events = (rest + value).split('\n\n');
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith('data: ')) continue;
      const data = event.slice(6);
      if (data === '[DONE]') return;
      const record = JSON.parse(data);
      if (record.error) throw new Error(record.error.message);
      yield record;
    }
  }
}

function sampling() {
  const number = id => $(id).value === '' ? undefined : Number($(id).value);
  return { temperature: number('temperature'), top_p: number('top_p'), seed: number('seed') };
}

function conversation(turns) {
  const system = $('system').value.trim();
  return [...(system ? [{ role: 'system', content: system }] : []), ...turns];
}

// Runs one thing at a time; the button that began it stops it meanwhile.
async function exclusively(button, work) {
  if (running) return;
  const label = button.textContent;
  running = new AbortController();
  button.textContent = 'Stop';
  fault('');
  try { await work(running.signal); }
  catch (error) { if (error.name !== 'AbortError') fault(error.message); }
  finally { running = null; button.textContent = label; }
}
