// Decoding a case and drawing its planes. Arrays are in the order z, y, x; x grows to the patient's left, y to
// posterior, z to superior. Planes follow the radiological convention: the patient's right is on the left.
"use strict";
const MRE = (() => {
  const PLANES = [
    { name: "axial", axis: 0, rows: 1, columns: 2, flip: false, edges: "RLAP" },
    { name: "coronal", axis: 1, rows: 0, columns: 2, flip: true, edges: "RLSI" },
    { name: "sagittal", axis: 2, rows: 0, columns: 1, flip: true, edges: "APSI" },
  ];
  const OTHER = 255; // a label value that the report does not list
  const DIFFERENCE = ["#3fa9f5", "#ff9d2e", "#5a3cff"]; // missed, extra, another label; as in page.css
  const BARS = [1, 2, 5, 10, 20, 50, 100, 200]; // mm

  const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

  // The content of a block, once the browser has read it whole.
  async function bytesOf(id) {
    let block = document.getElementById(id);
    while (document.readyState === "loading" && !(block && block.nextElementSibling)) {
      await pause(30);
      block = document.getElementById(id);
    }
    return Uint8Array.from(atob(block.textContent.trim()), (letter) => letter.charCodeAt(0));
  }

  async function inflate(id) {
    const stream = new Blob([await bytesOf(id)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // The grey values of all slices, from one picture with a tile for each slice.
  async function unpack(id, images) {
    const [depth, height, width] = images.shape;
    const [tileHeight, tileWidth] = images.tile;
    const picture = await createImageBitmap(new Blob([await bytesOf(id)], { type: "image/jpeg" }));
    const canvas = document.createElement("canvas");
    canvas.width = picture.width;
    canvas.height = picture.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const grey = new Uint8Array(depth * height * width);
    for (let z = 0; z < depth; z++) {
      const left = (z % images.columns) * tileWidth;
      const top = Math.floor(z / images.columns) * tileHeight;
      const pixels = context.getImageData(left, top, width, height).data;
      for (let i = 0; i < height * width; i++) grey[z * height * width + i] = pixels[4 * i];
    }
    return grey;
  }

  async function decode(number, images) {
    const [scan, prediction, reference] = await Promise.all([
      images.scan ? unpack(`scan-${number}`, images) : null,
      images.prediction ? inflate(`prediction-${number}`) : null,
      images.reference ? inflate(`reference-${number}`) : null,
    ]);
    return { images, scan, prediction, reference };
  }

  // Brightness of each grey value in a window.
  function brightness(images, level, width) {
    const table = new Uint8ClampedArray(256);
    for (let code = 0, knot = 0; code < 256; code++) {
      while (knot < images.codes.length - 2 && code > images.codes[knot + 1]) knot++;
      const [a, b] = [images.codes[knot], images.codes[knot + 1]];
      const value = images.values[knot] + ((images.values[knot + 1] - images.values[knot]) * (code - a)) / (b - a);
      table[code] = 255 * ((value - level) / width + 0.5);
    }
    return table;
  }

  // One plane of a volume, as displayed: row 0 on top.
  function slice(volume, shape, plane, index) {
    const strides = [shape[1] * shape[2], shape[2], 1];
    const [rows, columns] = [shape[plane.rows], shape[plane.columns]];
    const found = new Uint8Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      const start = index * strides[plane.axis] + (plane.flip ? rows - 1 - row : row) * strides[plane.rows];
      for (let column = 0; column < columns; column++)
        found[row * columns + column] = volume[start + column * strides[plane.columns]];
    }
    return found;
  }

  // 1 missed, 2 extra, 3 another label; 0 where both agree, or neither label is shown.
  function differences(prediction, reference, visible) {
    return prediction.map((p, i) => {
      const r = reference[i];
      if (p === r || r === OTHER || !(visible[p] || visible[r])) return 0;
      return p === 0 ? 1 : r === 0 ? 2 : 3;
    });
  }

  function layer(rows, columns, paint) {
    const canvas = document.createElement("canvas");
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(columns, rows);
    paint(picture.data);
    context.putImageData(picture, 0, 0);
    return canvas;
  }

  // The borders between pixels of a label and others, a path for each label that is shown.
  function outlines(labels, rows, columns, shown) {
    const paths = new Map();
    const at = (row, column) =>
      row < 0 || column < 0 || row >= rows || column >= columns ? 0 : labels[row * columns + column];
    for (let row = 0; row <= rows; row++)
      for (let column = 0; column <= columns; column++) {
        const here = at(row, column);
        for (const [other, x, y] of [[at(row - 1, column), column + 1, row], [at(row, column - 1), column, row + 1]])
          if (here !== other)
            for (const label of [here, other])
              if (label && shown(label)) {
                if (!paths.has(label)) paths.set(label, new Path2D());
                paths.get(label).moveTo(column, row);
                paths.get(label).lineTo(x, y);
              }
      }
    return paths;
  }

  function text(context, words, x, y, align, baseline) {
    context.textAlign = align;
    context.textBaseline = baseline;
    context.strokeStyle = "#000";
    context.lineWidth = 3;
    context.strokeText(words, x, y);
    context.fillText(words, x, y);
  }

  // What lies over the picture: cross, directions, length of a bar, number of the slice.
  function annotate(context, size, plane, volume, view, scale) {
    const { images } = volume;
    const index = view.at[plane.axis];
    context.font = "12px system-ui, sans-serif";
    if (view.cross) {
      const row = plane.flip ? images.shape[plane.rows] - 1 - view.at[plane.rows] : view.at[plane.rows];
      const x = ((view.at[plane.columns] + 0.5) / images.shape[plane.columns]) * size.width;
      const y = ((row + 0.5) / images.shape[plane.rows]) * size.height;
      context.strokeStyle = "rgba(255, 255, 255, 0.55)";
      context.lineWidth = 1;
      context.setLineDash([3, 4]);
      context.beginPath();
      for (const [a, b, c, d] of [[0, y, x - 9, y], [x + 9, y, size.width, y], [x, 0, x, y - 9], [x, y + 9, x, size.height]]) {
        context.moveTo(a, b);
        context.lineTo(c, d);
      }
      context.stroke();
      context.setLineDash([]);
    }
    context.fillStyle = "#ffe9a8";
    text(context, `${index + 1}/${images.shape[plane.axis]}`, 4, 3, "left", "top");
    if (!images.directions) return;
    const [left, right, top, bottom] = plane.edges;
    text(context, left, 3, size.height / 2, "left", "middle");
    text(context, right, size.width - 3, size.height / 2, "right", "middle");
    text(context, top, size.width / 2, 3, "center", "top");
    text(context, bottom, size.width / 2, size.height - 3, "center", "bottom");
    const bar = BARS.filter((length) => length * scale <= size.width / 3).pop();
    if (!bar) return;
    context.fillRect(5, size.height - 6, bar * scale, 2);
    text(context, `${bar} mm`, 5, size.height - 8, "left", "bottom");
  }

  // Draw a plane of a case. kind: prediction, reference or difference; view: at, level, width, opacity, labels
  // (whether any are shown), visible (by number of the label), colours, cross; scale: pixels per mm.
  function draw(canvas, plane, kind, volume, view, scale) {
    const { images } = volume;
    const [rows, columns] = [images.shape[plane.rows], images.shape[plane.columns]];
    const size = { width: columns * images.spacing[plane.columns] * scale, height: rows * images.spacing[plane.rows] * scale };
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(size.width * ratio));
    canvas.height = Math.max(1, Math.round(size.height * ratio));
    canvas.style.width = `${size.width}px`;
    canvas.style.height = `${size.height}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const cut = (array) => (array ? slice(array, images.shape, plane, view.at[plane.axis]) : null);
    const scan = cut(volume.scan);
    if (scan) {
      const table = brightness(images, view.level, view.width);
      const grey = layer(rows, columns, (pixels) => {
        for (let i = 0; i < scan.length; i++) {
          pixels[4 * i] = pixels[4 * i + 1] = pixels[4 * i + 2] = table[scan[i]];
          pixels[4 * i + 3] = 255;
        }
      });
      context.imageSmoothingQuality = "high";
      context.drawImage(grey, 0, 0, size.width, size.height);
    }
    const [prediction, reference] = [cut(volume.prediction), cut(volume.reference)];
    const lined = kind === "prediction" ? prediction : reference;
    if (view.labels && lined) {
      const compared = kind === "difference";
      const tinted = compared ? differences(prediction, reference, view.visible) : lined;
      const colours = compared ? [null, ...DIFFERENCE].map((c) => c && rgb(c)) : view.colours;
      const alpha = 255 * (compared ? Math.max(view.opacity, 0.6) : view.opacity);
      const tint = layer(rows, columns, (pixels) => {
        for (let i = 0; i < tinted.length; i++)
          if (tinted[i] && colours[tinted[i]] && (compared || view.visible[tinted[i]])) {
            pixels.set(colours[tinted[i]], 4 * i);
            pixels[4 * i + 3] = alpha;
          }
      });
      context.imageSmoothingEnabled = false;
      context.drawImage(tint, 0, 0, size.width, size.height);
      context.save();
      context.scale(size.width / columns, size.height / rows);
      context.lineCap = "round";
      context.lineWidth = ((compared ? 1 : 1.6) * columns) / size.width;
      for (const [label, path] of outlines(lined, rows, columns, (l) => view.visible[l])) {
        context.strokeStyle = compared ? "#fff" : `rgb(${(view.colours[label] || [255, 255, 255]).join(",")})`;
        context.stroke(path);
      }
      context.restore();
    }
    annotate(context, size, plane, volume, view, scale);
  }

  // The voxel where a label differs most from the reference, or, without one, where most of it lies; null: nowhere.
  function place(volume, label) {
    const { shape } = volume.images;
    const [one, other] = [volume.prediction || volume.reference, volume.reference];
    const counts = shape.map((n) => new Float64Array(n));
    for (const wanted of [(p, r) => p !== r && r !== OTHER && (p === label || r === label), (p) => p === label]) {
      let total = 0;
      for (let i = 0; i < one.length; i++)
        if (wanted(one[i], other ? other[i] : one[i])) {
          counts[0][Math.floor(i / (shape[1] * shape[2]))]++;
          counts[1][Math.floor(i / shape[2]) % shape[1]]++;
          counts[2][i % shape[2]]++;
          total++;
        }
      if (total) return counts.map((count) => count.indexOf(Math.max(...count)));
    }
    return null;
  }

  return { PLANES, decode, draw, place, rgb };
})();
