// A zone that takes one file: by drop, by tap, or from code.

export class Zone {
  /** `kind` is "img" or "video"; `onChange` is called with the file, or null. */
  constructor(zone, kind, onChange) {
    Object.assign(this, {zone, kind, onChange, file: null});
    this.input = zone.querySelector("input");
    this.words = zone.querySelector(".words");
    this.hint = this.words.innerHTML; // our own markup, never a client's
    this.input.addEventListener("change", () => this.input.files[0] && this.take(this.input.files[0]));
    zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      if (event.dataTransfer.files.length) this.take(event.dataTransfer.files[0]);
    });
  }

  take(file) {
    this.file = file;
    this.zone.querySelectorAll("img,video").forEach((old) => { URL.revokeObjectURL(old.src); old.remove(); });
    const view = document.createElement(this.kind);
    view.src = URL.createObjectURL(file);
    if (this.kind === "video") Object.assign(view, {muted: true, loop: true, autoplay: true, playsInline: true});
    else view.alt = file.name;
    view.onerror = () => { // a format that this browser does not show; the service may
      view.remove();
      this.words.hidden = false;
      this.words.textContent = file.name;
    };
    this.words.hidden = true;
    this.zone.append(view);
    this.onChange(file);
  }

  clear() {
    this.file = null;
    this.input.value = "";
    this.zone.querySelectorAll("img,video").forEach((old) => old.remove());
    this.words.innerHTML = this.hint;
    this.words.hidden = false;
    this.onChange(null);
  }
}
