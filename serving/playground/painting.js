// Painting a mask over the person image. Painted = drawn anew: black in the mask that is sent; the rest is white.

const UNDO_STEPS = 20;

export class Painter {
  constructor(onChange) {
    const at = (id) => document.getElementById(id);
    Object.assign(this, {onChange, box: at("painter"), picture: at("canvas_image"), canvas: at("canvas"), brush: at("brush"),
      eraser: at("erase"), past: [], file: null});
    this.ink = this.canvas.getContext("2d", {willReadFrequently: true});
    this.canvas.addEventListener("pointerdown", (event) => this.#start(event));
    this.canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => this.#end());
    this.eraser.addEventListener("click", () => {
      this.eraser.setAttribute("aria-pressed", this.eraser.getAttribute("aria-pressed") !== "true");
    });
    at("undo").addEventListener("click", () => this.#undo());
    at("clear").addEventListener("click", () => this.#change(() => this.#wipe()));
    at("invert").addEventListener("click", () => this.#change(() => this.#invert()));
    at("mask_file").addEventListener("change", (event) => event.target.files[0] && this.#read(event.target.files[0]));
  }

  /** A new image below: what was painted on the last one is gone. */
  async load(file) {
    this.past = [];
    this.file = null;
    if (!file) { this.box.hidden = true; return; }
    if (this.picture.src) URL.revokeObjectURL(this.picture.src);
    this.picture.src = URL.createObjectURL(file);
    await this.picture.decode();
    this.canvas.width = this.picture.naturalWidth; // upright, as the service sees it
    this.canvas.height = this.picture.naturalHeight;
    this.onChange();
  }

  toggle() { this.box.hidden = !this.box.hidden; return !this.box.hidden; }

  get painted() {
    if (!this.canvas.width || !this.past.length) return false;
    const {data} = this.#pixels();
    for (let i = 3; i < data.length; i += 4) if (data[i] > 127) return true;
    return false;
  }

  /** The mask as a PNG of the image's size, the same File until it is changed; null where nothing is painted. */
  async toFile() {
    if (!this.painted) return null;
    if (this.file) return this.file;
    const out = document.createElement("canvas");
    Object.assign(out, {width: this.canvas.width, height: this.canvas.height});
    const ink = out.getContext("2d"), {data} = this.#pixels(), mask = ink.createImageData(out.width, out.height);
    for (let i = 0; i < data.length; i += 4) {
      const kept = data[i + 3] > 127 ? 0 : 255;
      mask.data.set([kept, kept, kept, 255], i);
    }
    ink.putImageData(mask, 0, 0);
    const blob = await new Promise((done) => out.toBlob(done, "image/png"));
    this.file = new File([blob], "mask.png", {type: "image/png"});
    return this.file;
  }

  #pixels() { return this.ink.getImageData(0, 0, this.canvas.width, this.canvas.height); }

  #change(how) {
    this.past.push(this.#pixels());
    if (this.past.length > UNDO_STEPS) this.past.splice(1, 1); // the first one, empty, says that something was painted
    how();
    this.file = null;
    this.onChange();
  }

  #wipe() { this.ink.clearRect(0, 0, this.canvas.width, this.canvas.height); }

  #invert() {
    const pixels = this.#pixels();
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([255, 0, 80, pixels.data[i + 3] > 127 ? 0 : 255], i);
    this.ink.putImageData(pixels, 0, 0);
  }

  #undo() {
    const last = this.past.pop();
    if (!last) return;
    this.ink.putImageData(last, 0, 0);
    this.file = null;
    this.onChange();
  }

  #read(file) {
    const picture = new Image();
    picture.onload = () => this.#change(() => {
      this.#wipe();
      this.ink.drawImage(picture, 0, 0, this.canvas.width, this.canvas.height);
      const pixels = this.#pixels();
      for (let i = 0; i < pixels.data.length; i += 4) {
        pixels.data.set([255, 0, 80, pixels.data[i] > 127 ? 0 : 255], i);
      }
      this.ink.putImageData(pixels, 0, 0);
      URL.revokeObjectURL(picture.src);
    });
    picture.src = URL.createObjectURL(file);
  }

  #start(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.past.push(this.#pixels());
    if (this.past.length > UNDO_STEPS) this.past.splice(1, 1);
    this.stroke = this.#place(event);
    this.#move(event);
  }

  #move(event) {
    if (!this.stroke) return;
    const to = this.#place(event), wipes = this.eraser.getAttribute("aria-pressed") === "true";
    Object.assign(this.ink, {
      globalCompositeOperation: wipes ? "destination-out" : "source-over", strokeStyle: "rgb(255,0,80)", lineCap: "round",
      lineJoin: "round", lineWidth: this.brush.value / 100 * Math.max(this.canvas.width, this.canvas.height),
    });
    this.ink.beginPath();
    this.ink.moveTo(this.stroke.x, this.stroke.y);
    this.ink.lineTo(to.x, to.y);
    this.ink.stroke();
    this.ink.globalCompositeOperation = "source-over";
    this.stroke = to;
  }

  #end() {
    if (!this.stroke) return;
    this.stroke = null;
    this.file = null;
    this.onChange();
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {x: (event.clientX - box.left) / box.width * this.canvas.width,
      y: (event.clientY - box.top) / box.height * this.canvas.height};
  }
}
