/** A picture of the visitor's own: chosen, dropped or pasted; shown with boxes over it. It is not kept. */

import { fill, h, icon } from "../dom.js";
import { Overlay } from "../faces/overlay.js";

export class PictureChoice {
    /** @type {File | null} */
    file = null;
    #image = h("img", { class: "choice-image", draggable: "false" });
    #frame = h("div", { class: "choice-frame", hidden: true });
    #said = h("p", { class: "choice-said", role: "status" });
    #input;
    /** @type {string | null} */
    #url = null;

    /**
     * @param {string} label
     * @param {(file: File) => void} chosen
     * @param {(key: string) => void} [pointed]  A box was clicked.
     */
    constructor(label, chosen, pointed) {
        this.label = label;
        this.chosen = chosen;
        this.overlay = new Overlay(pointed);
        this.#input = h("input", { type: "file", accept: "image/*,.heic,.heif,.avif", class: "visually-hidden", "aria-label": label });
        this.#frame.append(this.#image, this.overlay.element);
        const pick = h("label", { class: "choice-pick" }, this.#input, icon("upload"), h("span", {}, label), h("span", { class: "hint" }, "Choose, drop or paste a picture"));
        this.element = h("div", { class: "choice" }, pick, this.#frame, this.#said);
        this.#input.addEventListener("change", () => this.#take(this.#input.files));
        this.element.addEventListener("dragover", (event) => (event.preventDefault(), this.element.classList.add("dropping")));
        this.element.addEventListener("dragleave", () => this.element.classList.remove("dropping"));
        this.element.addEventListener("drop", (event) => {
            event.preventDefault();
            this.element.classList.remove("dropping");
            this.#take(event.dataTransfer?.files ?? null);
        });
        this.element.addEventListener("paste", (event) => this.#take(event.clipboardData?.files ?? null));
        this.#image.addEventListener("error", () => {
            // HEIC and TIFF: the service reads what this browser does not show.
            this.#frame.classList.add("unseen");
            this.say("This browser cannot show this format; the boxes are right all the same.");
        });
    }

    /** @param {FileList | null} files */
    #take(files) {
        const file = files?.[0];
        if (!file) return;
        this.file = file;
        if (this.#url) URL.revokeObjectURL(this.#url);
        this.#url = URL.createObjectURL(file);
        this.#frame.classList.remove("unseen");
        this.#frame.hidden = false;
        this.overlay.clear();
        this.say("");
        this.#image.src = this.#url;
        this.#image.alt = file.name;
        this.#input.value = "";
        this.chosen(file);
    }

    /** No picture any more. */
    clear() {
        this.file = null;
        this.#frame.hidden = true;
        this.#image.removeAttribute("src");
        this.overlay.clear();
        this.say("");
    }

    /** @param {import("../types.js").PictureSize} size @param {import("../faces/overlay.js").Box[]} boxes */
    draw(size, boxes) {
        this.#frame.style.setProperty("--width", String(size.width_px));
        this.#frame.style.setProperty("--height", String(size.height_px));
        this.overlay.show(size.width_px, size.height_px, boxes);
    }

    /** @param {string} text @param {boolean} [wrong] */
    say(text, wrong = false) {
        fill(this.#said, text);
        this.#said.classList.toggle("error-text", wrong);
    }
}

/** The picture of a face that an answer carries as base64 PNG; call the second to let go of it. @param {string} base64 @returns {[HTMLImageElement, () => void]} */
export function cropImage(base64) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    return [h("img", { src: url, alt: "", class: "crop", width: 112, height: 112 }), () => URL.revokeObjectURL(url)];
}
