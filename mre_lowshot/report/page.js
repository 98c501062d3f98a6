// The case viewer: list, sliders, toggles and keys. All texts are set as text, never as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const viewer = document.getElementById("viewer");
  if (!viewer || !data.cases.length) return;
  const $ = (id) => document.getElementById(id);
  const make = (name, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  };
  const KINDS = ["prediction", "reference", "difference"];
  const PRESETS = { "soft tissue": [40, 400], liver: [80, 150], brain: [40, 80], lung: [-600, 1500], bone: [400, 1800] };
  const cache = new Map(); // case number -> promise of its volumes
  const view = {
    at: [0, 0, 0], level: 0, width: 1, opacity: 0.3, labels: true, cross: true, plane: "all", active: 0,
    visible: [false, ...data.labels.map(() => true)], colours: [null, ...data.labels.map((label) => MRE.rgb(label.colour))],
    kinds: { prediction: true, reference: true, difference: true },
  };
  view.visible[255] = true;
  view.colours[255] = [255, 255, 255];
  const buttons = [...$("list").querySelectorAll("button")];
  let current = -1;
  let volume = null;
  let panels = []; // { plane, kind, canvas }
  let sliders = [];
  let scale = 1;

  const number = (value, digits) => (value === null ? "-" : value.toFixed(digits));
  const volumeText = (ml) => (ml === null ? "-" : ml >= 10 ? ml.toFixed(0) : ml >= 0.1 ? ml.toFixed(1) : ml.toFixed(3));

  // ---- A case is opened.

  function volumesOf(index) {
    if (!cache.has(index)) {
      if (cache.size > 3) cache.delete(cache.keys().next().value);
      cache.set(index, MRE.decode(index, data.cases[index].images));
    }
    return cache.get(index);
  }

  // In the list, without moving the page.
  function reveal(button) {
    const [list, box] = [$("list").getBoundingClientRect(), button.getBoundingClientRect()];
    const head = $("list").firstElementChild.offsetHeight;
    if (box.top < list.top + head) $("list").scrollTop -= list.top + head - box.top;
    else if (box.bottom > list.bottom) $("list").scrollTop += box.bottom - list.bottom;
  }

  async function open(index, { focus = false } = {}) {
    index = Math.min(Math.max(index, 0), data.cases.length - 1);
    current = index;
    const one = data.cases[index];
    buttons.forEach((button, i) => (i === index ? button.setAttribute("aria-current", "true") : button.removeAttribute("aria-current")));
    reveal(buttons[index]);
    if (focus) buttons[index].focus({ preventScroll: true });
    $("case-name").textContent = one.name;
    $("case-group").textContent = [
      one.group, `${index + 1} of ${data.cases.length}`, one.dice !== null && `mean Dice ${one.dice.toFixed(2)}`,
      one.quality !== null && `quality score ${one.quality.toFixed(2)}`,
    ].filter(Boolean).join(", ");
    $("findings").replaceChildren(
      ...one.findings.map((words) => make("li", {}, finding(words))),
      ...one.warnings.map((words) => make("li", { className: "warn", textContent: `Warning: ${words}` })),
      ...one.missing.map((words) => make("li", { className: "warn", textContent: `Not shown: ${words}` }))
    );
    showScores(one);
    volume = null;
    panels = [];
    $("planes").replaceChildren();
    $("planes").classList.toggle("hidden", !one.images);
    if (!one.images) return;
    let found;
    try {
      found = await volumesOf(index);
    } catch (problem) {
      cache.delete(index);
      $("findings").append(make("li", { className: "warn", textContent: `The images cannot be decoded: ${problem}` }));
      return;
    }
    if (index !== current) return;
    volume = found;
    view.at = [...one.images.start];
    setWindow((one.images.window[0] + one.images.window[1]) / 2, one.images.window[1] - one.images.window[0]);
    $("preset").classList.toggle("hidden", one.images.unit !== "HU");
    $("unit").textContent = one.images.unit;
    for (const kind of KINDS) $(`show-${kind}`).disabled = kind !== "prediction" && !volume.reference;
    layOut();
  }

  // A sentence about a structure leads to it.
  function finding(words) {
    const label = data.labels.findIndex((one) => words.startsWith(`${one.name}: `));
    if (label < 0) return words;
    const button = make("button", { type: "button", textContent: words, title: "go there" });
    button.addEventListener("click", () => goTo(label + 1));
    return button;
  }

  function showScores(one) {
    const against = one.scores.some((score) => score.metrics.some((value) => value !== null));
    const columns = against ? data.metrics : ["quality"];
    $("scores-head").replaceChildren(...["label", ...columns, one.amount].map((name) => make("th", { textContent: name, scope: "col" })));
    const rows = data.labels.map((label, i) => {
      const score = one.scores[i];
      const box = make("input", { type: "checkbox", checked: view.visible[i + 1], ariaLabel: `show ${label.name}` });
      box.addEventListener("change", () => { view.visible[i + 1] = box.checked; redraw(); });
      const swatch = make("span", { className: "key" });
      swatch.style.background = label.colour;
      const name = make("button", { type: "button", textContent: label.name, title: `${label.name}: go to where it differs most, or lies` });
      name.addEventListener("click", () => goTo(i + 1));
      const cells = against
        ? score.metrics.map((value, n) => number(value, data.metrics[n] === "HD95" ? 1 : 2))
        : [number(score.quality, 2)];
      const volumes = volumeText(score.volume) + (score.reference === null ? "" : ` / ${volumeText(score.reference)}`);
      return make("tr", {}, make("td", {}, box, swatch, name), ...[...cells, volumes].map((t) => make("td", { textContent: t })));
    });
    $("scores-body").replaceChildren(...rows);
    $("scores-note").textContent = against ? `${one.amount}: predicted / reference` : "";
  }

  function goTo(label) {
    const found = volume && MRE.place(volume, label);
    if (found) moveTo(found);
  }

  // ---- Planes.

  function layOut() {
    const { images } = volume;
    const kinds = KINDS.filter((kind) => view.kinds[kind] && (kind === "prediction" || volume.reference));
    if (!kinds.length) kinds.push("prediction");
    const flat = images.shape[0] === 1;
    const planes = MRE.PLANES.filter((plane) => (flat ? plane.axis === 0 : view.plane === "all" || view.plane === plane.name));
    const wide = (plane) => images.shape[plane.columns] * images.spacing[plane.columns];
    const tall = (plane) => images.shape[plane.rows] * images.spacing[plane.rows];
    const width = $("planes").clientWidth - 16;
    const height = Math.max(window.innerHeight - 230, 340);
    scale = fittingScale(planes.map((plane) => [wide(plane), tall(plane)]), kinds.length, width, height);
    panels = [];
    sliders = [];
    const blocks = planes.map((plane) => {
      const row = make("div", { className: "row" });
      for (const kind of kinds) {
        const canvas = make("canvas", { tabIndex: 0 });
        canvas.setAttribute("role", "img");
        canvas.dataset.plane = plane.name;
        canvas.dataset.kind = kind;
        listen(canvas, plane);
        panels.push({ plane, kind, canvas });
        row.append(make("figure", {}, make("figcaption", { textContent: kind }), canvas));
      }
      const count = images.shape[plane.axis];
      const slider = make("input", { type: "range", min: 0, max: count - 1, step: 1, value: view.at[plane.axis] });
      slider.setAttribute("aria-label", `${plane.name} slice`);
      slider.id = `slice-${plane.name}`;
      slider.disabled = count === 1;
      slider.addEventListener("input", () => moveTo(view.at.map((v, axis) => (axis === plane.axis ? Number(slider.value) : v))));
      sliders.push({ plane, slider });
      return make("div", { className: "block" }, row, make("label", { className: "slice" }, `${plane.name} slice`, slider));
    });
    $("planes").replaceChildren(...blocks);
    redraw();
  }

  // Pixels per mm at which the planes of sizes (mm), each `count` times, fit when they are set in rows; not below 0.7 of
  // what a single plane would have: then the page scrolls.
  function fittingScale(sizes, count, width, height) {
    const room = (width - 8 * (count - 1)) / (count * Math.max(...sizes.map(([wide]) => wide)));
    const full = Math.min(room, (height - 40) / Math.max(...sizes.map(([, tall]) => tall)));
    for (let share = 1; share > 0.5; share *= 0.97) {
      let [left, line, total] = [0, 0, 0];
      for (const [wide, tall] of sizes) {
        const block = count * wide * full * share + 8 * (count - 1);
        if (left && left + 14 + block > width) [left, total, line] = [0, total + line + 46, 0];
        left += (left ? 14 : 0) + block;
        line = Math.max(line, tall * full * share);
      }
      if (total + line + 46 <= height) return full * share;
    }
    return 0.7 * full;
  }

  function redraw() {
    if (!volume) return;
    for (const { plane, slider } of sliders) slider.value = view.at[plane.axis];
    for (const { plane, kind, canvas } of panels) {
      MRE.draw(canvas, plane, kind, volume, view, scale);
      const where = `slice ${view.at[plane.axis] + 1} of ${volume.images.shape[plane.axis]}`;
      canvas.setAttribute("aria-label", `${data.cases[current].name}, ${kind}, ${plane.name} ${where}`);
    }
  }

  function moveTo(at) {
    view.at = at.map((value, axis) => Math.min(Math.max(Math.round(value), 0), volume.images.shape[axis] - 1));
    redraw();
  }

  function step(axis, by) {
    if (volume) moveTo(view.at.map((value, a) => (a === axis ? value + by : value)));
  }

  // A click moves the cross; the wheel changes the slice; shift or the right button changes the window.
  function listen(canvas, plane) {
    let last = null;
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const { shape } = volume.images;
      const column = ((event.clientX - box.left) / box.width) * shape[plane.columns] - 0.5;
      const row = ((event.clientY - box.top) / box.height) * shape[plane.rows] - 0.5;
      const at = [...view.at];
      at[plane.columns] = column;
      at[plane.rows] = plane.flip ? shape[plane.rows] - 1 - row : row;
      moveTo(at);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      view.active = plane.axis;
      last = { x: event.clientX, y: event.clientY, windowing: event.shiftKey || event.button === 2 };
      if (!last.windowing) point(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      if (!last.windowing) return point(event);
      const { values } = volume.images;
      const unit = (values[values.length - 1] - values[0]) / 1000;
      setWindow(view.level + (event.clientY - last.y) * unit, view.width + (event.clientX - last.x) * unit);
      last = { ...last, x: event.clientX, y: event.clientY };
      redraw();
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (last = null));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("focus", () => (view.active = plane.axis));
    canvas.addEventListener("dblclick", () => setPlane(view.plane === plane.name ? "all" : plane.name));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      step(plane.axis, event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
  }

  // ---- Controls.

  function setWindow(level, width) {
    const { values } = data.cases[current].images;
    const [low, high] = [values[0], values[values.length - 1]];
    view.level = Math.min(Math.max(level, low), high);
    view.width = Math.min(Math.max(width, (high - low) / 500), high - low);
    const digits = high - low > 50 ? 0 : 3;
    for (const [id, least, most, value] of [["level", low, high, view.level], ["width", (high - low) / 500, high - low, view.width]]) {
      Object.assign($(id), { min: least, max: most, step: (high - low) / 500 });
      $(id).value = value;
      $(`${id}-value`).textContent = value.toFixed(digits);
    }
  }

  function setPlane(name) {
    view.plane = name;
    view.active = Math.max(MRE.PLANES.findIndex((plane) => plane.name === name), 0);
    $("plane").value = name;
    if (volume) layOut();
  }

  function setLabels(shown) {
    view.labels = shown;
    $("show-labels").checked = shown;
    redraw();
  }

  function setAll(shown) {
    data.labels.forEach((_, i) => (view.visible[i + 1] = shown));
    for (const box of $("scores-body").querySelectorAll("input")) box.checked = shown;
    redraw();
  }

  for (const id of ["level", "width"])
    $(id).addEventListener("input", () => { setWindow(Number($("level").value), Number($("width").value)); redraw(); });
  $("preset").append(...Object.keys(PRESETS).map((name) => make("option", { textContent: name, value: name })));
  $("preset").addEventListener("change", () => { setWindow(...PRESETS[$("preset").value]); redraw(); });
  $("opacity").addEventListener("input", () => { view.opacity = Number($("opacity").value); redraw(); });
  $("plane").addEventListener("change", () => setPlane($("plane").value));
  $("show-labels").addEventListener("change", () => setLabels($("show-labels").checked));
  $("show-cross").addEventListener("change", () => { view.cross = $("show-cross").checked; redraw(); });
  $("all").addEventListener("click", () => setAll(true));
  $("none").addEventListener("click", () => setAll(false));
  $("previous").addEventListener("click", () => open(current - 1));
  $("next").addEventListener("click", () => open(current + 1));
  for (const kind of KINDS)
    $(`show-${kind}`).addEventListener("change", () => { view.kinds[kind] = $(`show-${kind}`).checked; if (volume) layOut(); });
  buttons.forEach((button, i) => {
    button.addEventListener("click", () => open(i));
    const share = data.cases[i].dice ?? data.cases[i].quality;
    const bar = button.querySelector("i");
    if (bar) bar.style.width = `${100 * Math.min(Math.max(share ?? 0, 0), 1)}%`;
  });
  $("filter").addEventListener("input", () => {
    const words = $("filter").value.toLowerCase();
    buttons.forEach((button, i) => button.classList.toggle("hidden", !`${data.cases[i].name} ${data.cases[i].group}`.toLowerCase().includes(words)));
  });

  // ---- Keys. Sliders, menus and text fields keep their own.

  const KEYS = {
    ArrowRight: () => open(current + 1), n: () => open(current + 1),
    ArrowLeft: () => open(current - 1), p: () => open(current - 1),
    ArrowUp: () => step(view.active, 1), ArrowDown: () => step(view.active, -1),
    PageUp: () => step(view.active, 5), PageDown: () => step(view.active, -5),
    Home: () => open(0), End: () => open(data.cases.length - 1),
    0: () => setPlane("all"), 1: () => setPlane("axial"), 2: () => setPlane("coronal"), 3: () => setPlane("sagittal"),
    h: () => setLabels(!view.labels),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const own = event.target.matches("select, input:not([type=checkbox])");
    if (own || !Object.hasOwn(KEYS, event.key)) return;
    const box = viewer.getBoundingClientRect();
    if (box.bottom < 0 || box.top > window.innerHeight) return; // the viewer is out of sight: keys scroll the page
    event.preventDefault();
    const list = $("list").contains(event.target) && { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (list) open(current + list, { focus: true });
    else KEYS[event.key]();
  });

  function openHash() {
    const found = /^#case-(\d+)$/.exec(location.hash);
    if (!found) return false;
    open(Number(found[1]));
    viewer.scrollIntoView();
    return true;
  }
  window.addEventListener("hashchange", openHash);
  let waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => volume && layOut(), 150);
  });
  if (!openHash()) open(0);
})();
