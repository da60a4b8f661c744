"""What moves on the page: a canvas with thousands of points, and how the rest looks."""

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:0 auto;padding:1rem 1.5rem 4rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2rem 0 .5rem;border-bottom:1px solid #ddd}
.verdict{font-size:1.15rem;font-weight:600}.wide{max-width:100%}
#frame{position:relative;height:640px;border:1px solid #ccc;overflow:hidden;background:#fff}
#map{width:100%;height:100%;cursor:grab;display:block}
#tip{position:absolute;pointer-events:none;background:#222;color:#fff;padding:.2rem .5rem;border-radius:3px;
display:none;font-size:13px;max-width:24rem;overflow-wrap:anywhere}
#legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:13px;margin:.4rem 0}
#legend i{display:inline-block;width:.8em;height:.8em;margin-right:.3em;border-radius:50%}
.strip{display:flex;flex-wrap:wrap;gap:.6rem;margin:.5rem 0}
.pairs{display:flex;flex-wrap:wrap;gap:.4rem 2rem}
figure{margin:0;width:6.4rem;font-size:12px}figure img{display:block;background:#eee}
figcaption{overflow-wrap:anywhere;line-height:1.25}
table{border-collapse:collapse;font-size:14px}td,th{text-align:left;padding:.2rem .9rem .2rem 0;vertical-align:top;
overflow-wrap:anywhere}pre{background:#f6f6f6;padding:.8rem;overflow-x:auto;font-size:12.5px;max-height:30rem}
"""

SCRIPT = """
(() => {
const source = document.getElementById("data");
if (!source) return;
const data = JSON.parse(source.textContent), n = data.x.length;
const canvas = document.getElementById("map"), frame = document.getElementById("frame");
const tip = document.getElementById("tip"), sheet = document.getElementById("sheet");
const colour = document.getElementById("colour"), pictures = document.getElementById("pictures");
const pen = canvas.getContext("2d");
let scale = 1, left = 0, top_ = 0, waiting = false, drag = null, over = -1;
const hue = (i, of) => i < 0 ? "#999" : `hsl(${Math.round(360 * i / Math.max(1, of))},75%,${i % 2 ? 38 : 52}%)`;
const groups = () => colour.value === "label" ? data.label : colour.value === "cluster" ? data.cluster : null;
const count = () => colour.value === "label" ? data.classes.length : 1 + Math.max(0, ...data.cluster);
const grid = new Map(), cells = 100, key = (x, y) => Math.floor(x * cells) * 1000 + Math.floor(y * cells);
for (let i = 0; i < n; i++) {
  const k = key(data.x[i], data.y[i]);
  if (!grid.has(k)) grid.set(k, []);
  grid.get(k).push(i);
}
function whole() {
  const w = frame.clientWidth, h = frame.clientHeight;
  scale = Math.min(w, h) - 60;
  left = (w - scale * Math.max(...data.x)) / 2;
  top_ = (h - scale * Math.max(...data.y)) / 2;
  ask();
}
function ask() {
  if (!waiting) { waiting = true; requestAnimationFrame(draw); }
}
function draw() {
  waiting = false;
  const w = frame.clientWidth, h = frame.clientHeight, dense = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(w * dense) || canvas.height !== Math.round(h * dense)) {
    canvas.width = Math.round(w * dense);
    canvas.height = Math.round(h * dense);
  }
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  pen.clearRect(0, 0, w, h);
  const seen = [];
  for (let i = 0; i < n; i++) {
    const x = left + data.x[i] * scale, y = top_ + data.y[i] * scale;
    if (x > -40 && y > -40 && x < w + 40 && y < h + 40) seen.push([i, x, y]);
  }
  const kinds = groups(), of = kinds ? count() : 1;
  const side = Math.max(6, Math.min(64, 0.9 * Math.sqrt(w * h / Math.max(1, seen.length))));
  const shown = pictures.checked && sheet.complete && side >= 10;
  for (const [i, x, y] of seen) {
    const paint = kinds ? hue(kinds[i], of) : "#357";
    if (shown) {
      const s = data.side, c = i % data.columns, r = Math.floor(i / data.columns);
      if (kinds) { pen.fillStyle = paint; pen.fillRect(x - side / 2 - 2, y - side / 2 - 2, side + 4, side + 4); }
      pen.drawImage(sheet, c * s, r * s, s, s, x - side / 2, y - side / 2, side, side);
    } else {
      pen.fillStyle = paint;
      pen.fillRect(x - 2, y - 2, 4, 4);
    }
  }
  if (over >= 0) {
    const x = left + data.x[over] * scale, y = top_ + data.y[over] * scale, s = data.side;
    pen.strokeStyle = "#000";
    pen.lineWidth = 2;
    pen.strokeRect(x - 33, y - 33, 66, 66);
    pen.drawImage(sheet, over % data.columns * s, Math.floor(over / data.columns) * s, s, s, x - 32, y - 32, 64, 64);
  }
  canvas.dataset.drawn = String(seen.length);
}
function nearest(px, py) {
  const x = (px - left) / scale, y = (py - top_) / scale, reach = 24 / scale;
  const wide = Math.min(cells, Math.ceil(reach * cells));
  let best = -1, distance = reach * reach;
  for (let a = -wide; a <= wide; a++) for (let b = -wide; b <= wide; b++)
    for (const i of grid.get(key(x + a / cells, y + b / cells)) || []) {
      const d = (data.x[i] - x) ** 2 + (data.y[i] - y) ** 2;
      if (d < distance) { distance = d; best = i; }
    }
  return best;
}
function legend() {
  const box = document.getElementById("legend"), kinds = groups();
  box.replaceChildren();
  if (!kinds || count() > 40) return;
  for (let i = 0; i < count(); i++) {
    const entry = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = hue(i, count());
    entry.append(dot, colour.value === "label" ? data.classes[i] : `cluster ${i + 1}`);
    box.append(entry);
  }
}
frame.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = frame.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  const by = Math.exp(-event.deltaY * 0.0015), next = Math.min(2e5, Math.max(100, scale * by)), real = next / scale;
  left = x - (x - left) * real;
  top_ = y - (y - top_) * real;
  scale = next;
  ask();
}, {passive: false});
frame.addEventListener("pointerdown", (event) => { drag = [event.clientX - left, event.clientY - top_]; });
window.addEventListener("pointerup", () => { drag = null; });
frame.addEventListener("pointermove", (event) => {
  const box = frame.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  if (drag) { left = event.clientX - drag[0]; top_ = event.clientY - drag[1]; ask(); return; }
  const found = nearest(x, y);
  if (found !== over) { over = found; ask(); }
  tip.style.display = found < 0 ? "none" : "block";
  if (found < 0) return;
  const kind = data.label[found] >= 0 ? `: ${data.classes[data.label[found]]}` : "";
  tip.textContent = data.names[found] + kind;
  tip.style.left = `${Math.min(x + 40, box.width - 200)}px`;
  tip.style.top = `${Math.min(y + 16, box.height - 60)}px`;
});
frame.addEventListener("pointerleave", () => { over = -1; tip.style.display = "none"; ask(); });
colour.addEventListener("change", () => { legend(); ask(); });
pictures.addEventListener("change", ask);
document.getElementById("whole").addEventListener("click", whole);
window.addEventListener("resize", whole);
sheet.addEventListener("load", ask);
canvas.redraw = draw;
legend();
whole();
})();
"""
