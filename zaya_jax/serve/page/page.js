// Around both tabs.

function tab(name) {
  for (const id of ['chat', 'rsa']) {
    $(id).hidden = id !== name;
    $(`tab-${id}`).setAttribute('aria-selected', String(id === name));
    $(`tab-${id}`).tabIndex = id === name ? 0 : -1;
  }
  history.replaceState(null, '', `#${name}`);
  if (name === 'rsa') draw();
}
for (const id of ['chat', 'rsa']) {
  $(`tab-${id}`).addEventListener('click', () => tab(id));
  $(`tab-${id}`).addEventListener('keydown', event => {
    if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
    const other = id === 'chat' ? 'rsa' : 'chat';
    tab(other);
    $(`tab-${other}`).focus();
  });
}
$('open-settings').addEventListener('click', () => $('settings').showModal());
document.addEventListener('keydown', event => {
  if (event.key === 'Escape' && !$('settings').open && !close()) running?.abort();
  const typing = event.target.matches('input, textarea, select');
  if (event.key === ',' && !typing && !event.ctrlKey && !event.metaKey) $('settings').showModal();
});

async function meet() {
  try {
    const response = await fetch('v1/models', { headers: headers() });
    if (!response.ok) throw new Error(await failure(response));
    model = (await response.json()).data[0];
  } catch (error) { return fault(error.message); }
  fault('');
  $('model').textContent = model.id;
  document.title = `ZAYA: ${model.id}`;
  if (!$('preset').options.length) {
    for (const name of Object.keys(model.zaya.rsa_presets)) $('preset').append(new Option(name, name));
    $('preset').value = '16k-4k';
    preset('16k-4k');
  }
  if (!model.zaya.chat_template) $('welcome').textContent = 'This model has no chat template: it continues what you write.';
}
$('key').value = sessionStorage.getItem('key') ?? '';
$('key').addEventListener('change', () => { sessionStorage.setItem('key', $('key').value); meet(); });
if (location.hash === '#rsa') tab('rsa');
meet();
