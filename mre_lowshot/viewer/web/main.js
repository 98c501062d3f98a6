// The page of mre_view: case list, display options, keys. All addresses are relative: they hold the token.
import { Panel } from "./panel.js";

const $ = (id) => document.getElementById(id);
const LAYERS = { prediction: "prediction", reference: "reference", both: "side by side", difference: "difference" };
const DIFFERENCES = [
  { value: 1, name: "only predicted", colour: "#e69f00" },
  { value: 2, name: "only in the reference", colour: "#56b4e9" },
  { value: 3, name: "another label", colour: "#f05ac3" },
];
const CONVENTION = "Axial, coronal: the patient's right is on the left. Sagittal: anterior is on the left.";
const state = { cases: [], number: -1, info: null, layer: "prediction", view: "planes", channel: 0, turn: 0 };
const hidden = { labels: new Set(), differences: new Set() };
const panels = { one: null, two: null };

const element = (name, text = "", kind = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = kind;
  return made;
};
const shownPanels = () => (state.layer === "both" ? [panels.one, panels.two] : [panels.one]);
const layerOf = (panel) => (state.layer !== "both" ? state.layer : panel === panels.one ? "prediction" : "reference");
const rowsOf = (layer) => (layer === "difference" ? DIFFERENCES : state.info?.labels ?? []);
const hiddenOf = (layer) => (layer === "difference" ? hidden.differences : hidden.labels);
const has = (file) => state.info?.files.includes(file) ?? false;

async function getJson(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  return answer.json();
}

// The list of cases.

function fillCases(listed) {
  state.cases = listed.cases;
  $("count").textContent = `(${listed.cases.length}), the worst first`;
  $("folder").textContent = listed.folder;
  $("cases").replaceChildren(...listed.cases.map((one, number) => {
    const row = element("li");
    row.setAttribute("role", "option");
    row.title = one.warnings.join("\n");
    row.append(element("span", one.name, "name"));
    if (one.warnings.length) row.append(element("span", "!", "mark"));
    row.append(element("span", one.failed ? "failed" : one.score === null ? "-" : one.score.toFixed(2), "score"));
    row.addEventListener("click", () => open(number));
    return row;
  }));
}

function showMessages(lines) {
  $("messages").replaceChildren(...lines.map(([kind, text]) => element("span", text, kind)));
}

async function open(number) {
  if (number < 0 || number >= state.cases.length) return;
  const turn = ++state.turn; // a later call replaces this one
  const one = state.cases[number];
  state.number = number;
  [...$("cases").children].forEach((row, i) => row.setAttribute("aria-selected", String(i === number)));
  $("cases").children[number].scrollIntoView({ block: "nearest" });
  const score = one.score === null ? "" : `, quality score ${one.score.toFixed(2)} (${one.basis})`;
  $("title").textContent = `${number + 1} of ${state.cases.length}: ${one.name}${score}`;
  document.title = `${one.name} - mre_view`;
  const lines = one.warnings.map((text) => [one.failed ? "problem" : "warning", text]);
  showMessages([...lines, ["", "loading ..."]]);
  document.body.dataset.shown = "";
  try {
    const info = await getJson(`${number}/info.json`);
    if (turn !== state.turn) return;
    state.info = info;
    for (const [kind, text] of Object.entries(info.problems)) lines.push(["problem", `${kind}: ${text}`]);
    lines.push(...info.notes.map((text) => ["", text]));
    if (!info.files.length) {
      $("panels").hidden = true;
      fillLabels();
      return;
    }
    if (state.channel >= (info.windows?.length ?? 0)) state.channel = 0;
    $("panels").hidden = false;
    fillChoices();
    showWindow(...(info.windows?.[state.channel] ?? [NaN, NaN]));
    await show(turn, true);
    if (turn === state.turn) getJson(`${(number + 1) % state.cases.length}/info.json`).catch(() => {}); // is read ahead
  } catch (problem) {
    if (turn === state.turn) lines.push(["problem", `cannot be shown: ${problem.message}`]);
  } finally {
    if (turn === state.turn) {
      showMessages(lines);
      document.body.dataset.shown = one.name;
    }
  }
}

// What is shown of a case.

let last = Promise.resolve();

function show(turn, isNew) {
  last = last.catch(() => {}).then(() => (turn === state.turn ? draw(isNew) : null)); // one after another
  return last;
}

async function draw(isNew) {
  const { info, number } = state;
  const both = state.layer === "both";
  $("two").classList.toggle("away", !both);
  for (const panel of [panels.one, panels.two]) {
    panel.together(null);
    panel.arrange(both);
  }
  const scan = has("scan-0") ? `scan-${state.channel}` : info.files[0];
  for (const panel of shownPanels()) {
    const layer = layerOf(panel);
    panel.caption.textContent = layer === "difference" ? "difference of prediction and reference" : layer;
    panel.resize();
    const source = `${number}/${scan}.nii`;
    if (panel.source !== source) {
      panel.source = "";
      await panel.openScan(source, info.windows?.[state.channel] ?? [0, 1], info.scanless);
      panel.source = source;
      if (panel === panels.two) panel.follow(panels.one);
    }
    if (has(layer)) await panel.openLabels(`${number}/${layer}.nii`, rowsOf(layer), layer !== "difference");
    else panel.closeLabels();
  }
  if (both) {
    panels.one.together(panels.two);
    panels.two.together(panels.one);
  }
  fillLabels();
  applyDisplay();
  if (isNew) goToFocus();
  else moved(panels.one, panels.one.place);
}

function goToFocus() {
  const place = state.info?.focus?.[state.layer] ?? state.info?.focus?.prediction ?? state.info?.focus?.reference;
  if (place) for (const panel of shownPanels()) panel.goTo(place);
}

function applyDisplay() {
  const flat = Boolean(state.info?.plane); // one slice
  const letters = state.info?.has_directions ?? true;
  const view = flat ? state.info.plane : state.view;
  // Four tiles in a row fit best above each other, single planes beside each other.
  $("panels").classList.toggle("stacked", state.layer === "both" && view === "planes");
  for (const panel of shownPanels()) {
    panel.resize();
    panel.setView(view, { scanIn3D: $("render-scan").checked, letters, flat });
    panel.hide(hiddenOf(layerOf(panel)));
    panel.setOpacity(Number($("opacity").value), $("outline").checked);
  }
  for (const button of $("view").children) button.setAttribute("aria-pressed", String(button.value === view));
  for (const button of $("layer").children) button.setAttribute("aria-pressed", String(button.value === state.layer));
  $("render-row").hidden = flat;
  $("view").parentElement.hidden = flat && $("channel-row").hidden;
  $("convention").textContent = letters ? CONVENTION : "";
}

function fillChoices() {
  const compared = has("reference");
  const layers = Object.keys(LAYERS).filter((name) => has(name) || (name === "both" && compared && has("prediction")));
  if (!layers.includes(state.layer)) state.layer = layers[0] ?? "prediction";
  $("layers").hidden = layers.length < 2;
  $("layer").replaceChildren(...layers.map((name) => choice(LAYERS[name], name, () => setLayer(name))));
  const count = state.info.windows?.length ?? 0;
  $("channel-row").hidden = count < 2;
  $("channel").replaceChildren(...Array.from({ length: count }, (_, i) => new Option(String(i + 1), i)));
  $("channel").value = state.channel;
}

function choice(text, value, chosen) {
  const made = element("button", text);
  made.type = "button";
  made.value = value;
  made.addEventListener("click", chosen);
  return made;
}

function fillLabels() {
  const layer = state.layer === "both" ? "prediction" : state.layer;
  const rows = rowsOf(layer);
  const compared = layer !== "difference" && has("reference") && has("prediction");
  const number = (value, digits) => element("td", value?.toFixed(digits) ?? "", "number");
  const head = document.createElement("tr");
  const titles = layer === "difference" ? [""] : compared ? ["", "ml", "ref.", "Dice"] : ["", "ml"];
  head.append(...titles.map((title) => element("th", title)));
  $("labels").tHead.replaceChildren(head);
  $("labels").tBodies[0].replaceChildren(...rows.map((row, i) => {
    const made = document.createElement("tr");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = !hiddenOf(layer).has(row.value);
    box.dataset.value = row.value;
    box.addEventListener("change", () => toggle(row.value, box.checked));
    const swatch = element("span", "", "swatch");
    swatch.style.backgroundColor = row.colour;
    const label = document.createElement("label");
    label.append(box, swatch, element("span", row.name));
    if (i < 9) box.title = `key ${i + 1}`;
    const cell = document.createElement("td");
    cell.append(label);
    made.append(cell);
    if (layer !== "difference") {
      const digits = Math.max(...rows.map((r) => r.prediction_ml ?? r.reference_ml ?? 0)) < 20 ? 2 : 0;
      made.append(number(layer === "reference" && !compared ? row.reference_ml : row.prediction_ml, digits));
      if (compared) made.append(number(row.reference_ml, digits), number(row.dice, 2));
    }
    return made;
  }));
  $("all").checked = rows.every((row) => !hiddenOf(layer).has(row.value));
}

function toggle(value, visible) {
  const set = hiddenOf(state.layer);
  if (visible) set.delete(value);
  else set.add(value);
  fillLabels();
  for (const panel of shownPanels()) panel.hide(set);
}

function toggleAll() {
  const set = hiddenOf(state.layer);
  const rows = rowsOf(state.layer);
  const visible = rows.some((row) => set.has(row.value));
  for (const row of rows) {
    if (visible) set.delete(row.value);
    else set.add(row.value);
  }
  fillLabels();
  for (const panel of shownPanels()) panel.hide(set);
}

async function setLayer(layer) {
  if (!$("layer").querySelector(`[value="${layer}"]`) || layer === state.layer) return;
  state.layer = layer;
  document.body.dataset.layer = "";
  await show(state.turn, false);
  document.body.dataset.layer = layer;
}

function setView(view) {
  state.view = view;
  applyDisplay();
}

function resetWindow() {
  const range = state.info?.windows?.[state.channel];
  if (!range) return;
  for (const panel of shownPanels()) panel.setWindow(...range);
  showWindow(...range);
}

// What the user does in a panel.

function moved(panel, place) {
  panel.place = place;
  if (!state.info || !place) return;
  const [x, y, z] = place.mm;
  const side = (value, above, below) => `${value < 0 ? below : above} ${Math.abs(value).toFixed(1)}`;
  const where = state.info.has_directions ? `${side(x, "R", "L")}, ${side(y, "A", "P")}, ${side(z, "S", "I")} mm` : "";
  const value = state.info.scanless ? "" : `intensity ${Number(place.values[0]?.value ?? 0).toPrecision(4)}`;
  const names = shownPanels().map((one) => [layerOf(one), one.labelAt(place.vox)]).filter(([, name]) => name);
  const labels = names.map(([layer, name]) => `${layer}: ${name}`).join(", ");
  $("position").textContent = [where, value, labels].filter(Boolean).join("  |  ");
}

function showWindow(low, high) {
  const round = (value) => Math.round(value * 100) / 100;
  const level = `level ${round((low + high) / 2)}, window ${round(high - low)}`;
  $("window").textContent = Number.isNaN(low) ? "" : `${round(low)} to ${round(high)} (${level})`;
}

function windowed(panel, low, high) {
  showWindow(low, high);
  for (const other of shownPanels()) if (other !== panel) other.setWindow(low, high);
}

function changeOpacity(by) {
  $("opacity").value = Number($("opacity").value) + by;
  applyDisplay();
}

const axis = () => ({ coronal: 1, sagittal: 0 })[state.info?.plane || state.view] ?? 2;
const step = (by) => shownPanels().forEach((panel) => panel.step(by, axis()));
const flip = (id) => { $(id).checked = !$(id).checked; applyDisplay(); };
const views = ["planes", "axial", "coronal", "sagittal", "3D"];
const KEYS = {
  n: () => open(state.number + 1),
  p: () => open(state.number - 1),
  ArrowDown: () => open(state.number + 1),
  ArrowUp: () => open(state.number - 1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  v: () => setView(views[(views.indexOf(state.view) + 1) % views.length]),
  r: () => setLayer(state.layer === "reference" ? "prediction" : "reference"),
  s: () => setLayer(state.layer === "both" ? "prediction" : "both"),
  d: () => setLayer(state.layer === "difference" ? "prediction" : "difference"),
  g: goToFocus,
  o: () => flip("outline"),
  b: () => flip("render-scan"),
  a: toggleAll,
  w: resetWindow,
  "+": () => changeOpacity(0.1),
  "-": () => changeOpacity(-0.1),
};

function pressed(event) {
  const isField = event.target instanceof HTMLSelectElement || event.target.type === "range";
  if (event.target instanceof HTMLCanvasElement) event.stopPropagation(); // niivue has keys of its own
  if (event.type !== "keydown" || event.ctrlKey || event.metaKey || event.altKey || isField) return;
  const row = /^[1-9]$/.test(event.key) ? rowsOf(state.layer)[Number(event.key) - 1] : null;
  const action = row ? () => toggle(row.value, hiddenOf(state.layer).has(row.value))
    : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

async function start() {
  fillCases(await getJson("cases.json"));
  for (const name of Object.keys(panels)) {
    const figure = $(name);
    panels[name] = new Panel(figure.querySelector("canvas"), { moved, windowed });
    panels[name].caption = figure.querySelector("figcaption");
  }
  await panels.one.start();
  await panels.two.start();
  const title = (name) => (name === "planes" ? "planes + 3D" : name);
  $("view").replaceChildren(...views.map((name) => choice(title(name), name, () => setView(name))));
  $("opacity").addEventListener("input", applyDisplay);
  $("outline").addEventListener("change", applyDisplay);
  $("render-scan").addEventListener("change", applyDisplay);
  $("all").addEventListener("change", toggleAll);
  $("reset").addEventListener("click", resetWindow);
  $("channel").addEventListener("change", () => {
    state.channel = Number($("channel").value);
    show(state.turn, false);
  });
  window.addEventListener("keydown", pressed, true);
  window.addEventListener("keyup", pressed, true);
  await open(0);
}

start().catch((problem) => showMessages([["problem", `the page cannot start: ${problem.message}`]]));
