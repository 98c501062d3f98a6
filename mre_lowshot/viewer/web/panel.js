// One canvas: a scan with one label map, drawn by niivue. The label map is niivue's "drawing": filled with a thin
// outline in the planes, a lit surface in 3D.
const { Niivue, NVImage, SLICE_TYPE, SHOW_RENDER, MULTIPLANAR_TYPE, DRAG_MODE } = globalThis.niivue;

const VIEWS = {
  planes: SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  "3D": SLICE_TYPE.RENDER,
};
const MOST_LABELS = 255; // of niivue's drawings
const BESIDE_SCAN = [-1, 0, 0]; // a clip plane that leaves nothing of the scan
const FROM_THE_FRONT = [160, 12]; // azimuth and elevation, degrees
const NO_CLIPPING = [2, 0, 0];

async function download(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status} ${(await answer.text()).trim()}`);
  return answer.arrayBuffer();
}

// Each value of an array replaced by that of a table.
function replaced(array, table) {
  const made = new Uint8Array(array.length);
  for (let i = 0; i < array.length; i++) made[i] = table[array[i]];
  return made;
}

export class Panel {
  constructor(canvas, { moved, windowed }) {
    this.canvas = canvas;
    this.rows = [];
    this.labels = null;
    this.nv = new Niivue({
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      showAllOrientationMarkers: true,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      multiplanarPadPixels: 20,
      crosshairWidthUnit: "percent",
      crosshairWidth: 0.4,
      crosshairColor: [1, 1, 1, 0.45],
      crosshairGap: 12,
      isOrientCube: true,
      fontColor: [0.95, 0.45, 0.05, 1], // stands out from white and from black
      fontMinPx: 17,
      dragAndDropEnabled: false,
      smoothDrawing: 1,
      loadingText: "",
      logLevel: "error",
    });
    this.nv.setMouseEventConfig({
      leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.pan },
      rightButton: DRAG_MODE.windowing,
      centerButton: DRAG_MODE.pan,
    });
    this.nv.onLocationChange = (place) => moved(this, place);
    this.windowed = windowed;
    for (const event of ["mousemove", "mouseup", "dblclick"]) canvas.addEventListener(event, () => this.noticeWindow());
    canvas.addEventListener("wheel", (event) => this.zoom(event), { capture: true, passive: false });
  }

  // Report a window that niivue has changed while the mouse was dragged.
  noticeWindow() {
    const { cal_min: low, cal_max: high } = this.nv.volumes[0] ?? {};
    if (low === undefined || (this.window?.[0] === low && this.window[1] === high)) return;
    this.window = [low, high];
    this.windowed(this, low, high);
  }

  // Ctrl with the wheel, and pinching a touchpad: zoom, with the crosshair in its place.
  zoom(event) {
    if (!event.ctrlKey || !this.nv.volumes.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const [x, y, z, before] = this.nv.scene.pan2Dxyzmm;
    const after = Math.min(Math.max(before * Math.exp(-event.deltaY / 400), 0.5), 20);
    const mm = this.nv.frac2mm(this.nv.scene.crosshairPos);
    const moved = [x, y, z].map((value, i) => value + (before - after) * mm[i]);
    this.nv.scene.pan2Dxyzmm = [...moved, after];
    this.nv.drawScene();
    this.nv.sync();
  }

  async start() {
    await this.nv.attachToCanvas(this.canvas);
    this.nv.setRenderAzimuthElevation(...FROM_THE_FRONT);
  }

  // Show a scan. `blank`: the address is that of a label map, because there is no scan, and is drawn black.
  async openScan(url, [low, high], blank) {
    const buffer = await download(url);
    this.closeLabels();
    const range = blank ? { cal_min: 1e6, cal_max: 2e6 } : { cal_min: low, cal_max: high };
    const image = await NVImage.loadFromUrl({ url, buffer, name: "scan.nii", colormap: "gray", ...range });
    this.nv.volumes = [];
    this.nv.addVolume(image);
    this.window = [image.cal_min, image.cal_max];
    this.nv.setPan2Dxyzmm([0, 0, 0, 1]);
  }

  // Show a label map; rows: [{value, name, colour}]. `smooth`: its surface in 3D; thin structures would vanish.
  async openLabels(url, rows, smooth) {
    const image = await NVImage.loadFromUrl({ url, buffer: await download(url), name: "labels.nii" });
    const index = new Uint8Array(1 << 16);
    rows.forEach((row, i) => { index[row.value] = (i % MOST_LABELS) + 1; });
    image.img = replaced(image.img, index);
    if (!this.nv.loadDrawing(image)) throw new Error("the label map does not fit the scan");
    this.rows = rows;
    this.smooth = smooth ? 1 : 0;
    this.labels = this.nv.drawBitmap.slice();
    const channel = (at) => [0, ...rows.slice(0, MOST_LABELS).map((row) => parseInt(row.colour.slice(at, at + 2), 16))];
    const names = ["", ...rows.slice(0, MOST_LABELS).map((row) => row.name)];
    const opaque = names.map((_, i) => (i ? 255 : 0));
    this.nv.setDrawColormap({ R: channel(1), G: channel(3), B: channel(5), A: opaque, labels: names });
  }

  closeLabels() {
    this.labels = null;
    this.rows = [];
    if (this.nv.drawBitmap) this.nv.closeDrawing();
  }

  // Draw only the labels whose value is not in `hidden`.
  hide(hidden) {
    if (!this.labels) return;
    const kept = new Uint8Array(MOST_LABELS + 1);
    this.rows.forEach((row, i) => { if (!hidden.has(row.value)) kept[(i % MOST_LABELS) + 1] = (i % MOST_LABELS) + 1; });
    this.nv.drawBitmap = replaced(this.labels, kept);
    this.nv.opts.smoothDrawing = this.nv.drawBitmap.some((label) => label) ? this.smooth : 0;
    this.nv.refreshDrawing(true);
  }

  setOpacity(opacity, outline) {
    this.nv.drawRimOpacity = outline ? 1 : -1;
    this.nv.setDrawOpacity(opacity);
  }

  setView(view, { scanIn3D, letters, flat }) {
    this.nv.opts.isOrientationTextVisible = letters;
    this.nv.opts.multiplanarShowRender = flat ? SHOW_RENDER.NEVER : SHOW_RENDER.ALWAYS;
    this.nv.setClipPlane(scanIn3D || !this.labels ? NO_CLIPPING : BESIDE_SCAN);
    this.nv.setSliceType(VIEWS[view]);
  }

  setWindow(low, high) {
    const volume = this.nv.volumes[0];
    if (!volume || (volume.cal_min === low && volume.cal_max === high)) return;
    volume.cal_min = low;
    volume.cal_max = high;
    this.window = [low, high];
    this.nv.updateGLVolume();
  }

  goTo(mm) {
    if (!this.nv.volumes.length) return; // not loaded yet: niivue cannot tell a position
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  // Move with another panel, which must have its scan, or with none.
  together(other) {
    this.nv.broadcastTo(other?.nv.volumes.length ? [other.nv] : []);
  }

  // The planes beside each other, or two by two.
  arrange(inRow) {
    this.nv.opts.multiplanarLayout = inRow ? MULTIPLANAR_TYPE.ROW : MULTIPLANAR_TYPE.GRID;
  }

  // Take position, zoom, window and direction of view from another panel.
  follow(other) {
    const [from, to] = [other.nv, this.nv];
    to.scene.crosshairPos = to.mm2frac(from.frac2mm(from.scene.crosshairPos));
    to.scene.pan2Dxyzmm = Array.from(from.scene.pan2Dxyzmm);
    to.scene.renderAzimuth = from.scene.renderAzimuth;
    to.scene.renderElevation = from.scene.renderElevation;
    this.setWindow(from.volumes[0].cal_min, from.volumes[0].cal_max);
  }

  step(slices, axis) {
    if (!this.nv.volumes.length) return;
    const move = [0, 0, 0];
    move[axis] = slices;
    this.nv.moveCrosshairInVox(...move);
  }

  // The name of the label at a voxel that niivue names; empty outside.
  labelAt(vox) {
    if (!this.labels) return "";
    const [, nx, ny] = this.nv.back.dimsRAS;
    const label = this.labels[vox[0] + nx * (vox[1] + ny * vox[2])];
    return label ? this.rows[label - 1]?.name ?? "" : "";
  }

  resize() {
    this.nv.resizeListener();
  }
}
