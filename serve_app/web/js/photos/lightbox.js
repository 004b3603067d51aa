/** One photo on the whole window, with what is known of it; the arrow keys lead to its neighbours. */

import { address } from "../api.js";
import { confirmed } from "../components/dialogs.js";
import { fill, h, icon } from "../dom.js";
import { dayOf } from "../format.js";
import { PhotoFaces } from "../faces/photo_faces.js";
import { Details } from "./details.js";

/** @typedef {import("../types.js").Photo} Photo */
/** @typedef {{go: (photo: Photo) => void, close: () => void, removed: (photo: Photo) => void, changed: (photo: Photo) => void}} Told */

const FIT_PX = 1280;
const ZOOMED_PX = 2048;

export class Lightbox {
    /** @type {Photo | null} */
    photo = null;
    /** @type {import("./list.js").PhotoList | null} */
    #list = null;
    /** @type {(() => void)[]} */
    #held = [];
    #image = h("img", { class: "lightbox-image", draggable: "false", decoding: "async" });
    #frame = h("div", { class: "lightbox-frame" });
    /** It has the focus to begin with, and when it is scrolled by the arrow keys. */
    #stage = h("div", { class: "lightbox-stage", tabindex: "0", role: "group", "aria-label": "Picture" });
    #status = h("p", { class: "visually-hidden", role: "status" });
    #previous = button("previous", "Previous photo", () => this.#step(-1));
    #next = button("next", "Next photo", () => this.#step(1));
    #zoom = button("zoom", "Zoom", () => this.#toggleZoom());
    #info = button("info", "Details", () => this.#toggleDetails());
    #boxes = button("faces", "Boxes around faces", () => this.#toggleBoxes());

    /** @param {import("../types.js").App} app @param {Told} told */
    constructor(app, told) {
        this.app = app;
        this.told = told;
        this.details = new Details(app, (photo) => this.#changed(photo));
        this.faces = new PhotoFaces(app);
        this.details.more.append(this.faces.element);
        const bar = h(
            "div",
            { class: "lightbox-bar" },
            button("close", "Close", () => told.close()),
            h("span", { class: "spacer" }),
            this.#boxes,
            this.#zoom,
            button("download", "Download the original", () => void this.#download()),
            needing("write", button("erase", "Erase this photo", () => void this.#erase())),
            this.#info,
        );
        this.#frame.append(this.#image, this.faces.overlay);
        this.#stage.append(this.#frame);
        this.element = h(
            "dialog",
            { class: "lightbox", "aria-label": "Photo" },
            h("div", { class: "lightbox-main" }, bar, this.#stage, this.#previous, this.#next, this.#status),
            this.details.element,
        );
        this.element.addEventListener("cancel", (event) => (event.preventDefault(), told.close()));
        this.element.addEventListener("keydown", (event) => this.#key(event));
        this.#stage.addEventListener("click", (event) => event.target === this.#stage && told.close());
        this.#image.addEventListener("load", () => this.#image.classList.remove("loading"));
        this.#mark(this.#info, !matchMedia("(max-width: 800px)").matches);
        this.#mark(this.#boxes, true);
    }

    get isOpen() {
        return this.element.open;
    }

    /** @param {Photo} photo @param {import("./list.js").PhotoList} list  Whose neighbours it has. */
    open(photo, list) {
        this.#list = list;
        this.#show(photo);
        if (this.element.open) return;
        document.body.append(this.element);
        this.element.showModal();
        this.#stage.focus();
    }

    close() {
        if (!this.element.open) return;
        this.element.close();
        this.element.remove();
        this.#release();
        this.photo = null;
    }

    /** @param {Photo} photo */
    #show(photo) {
        this.photo = photo;
        this.#release();
        this.element.classList.remove("zoomed");
        this.#mark(this.#zoom, false);
        this.#image.removeAttribute("src");
        this.#image.classList.add("loading");
        this.#image.alt = `${photo.file_name}, ${dayOf(photo)}`;
        this.#frame.style.setProperty("--width", String(photo.width_px));
        this.#frame.style.setProperty("--height", String(photo.height_px));
        // What the grid has shown already, until the larger one is there.
        const small = h("img", { class: "lightbox-image under", alt: "", "aria-hidden": "true" });
        fill(this.#frame, small, this.#image, this.faces.overlay);
        this.#held.push(this.app.pictures.show(small, this.#address(photo, 320)));
        const index = this.#list?.indexOf(photo.id) ?? -1;
        for (const step of [-1, 1]) {
            const other = index < 0 ? undefined : this.#list?.photos[index + step];
            if (other) this.#held.push(this.app.pictures.show(new Image(), this.#address(other, FIT_PX)));
        }
        this.#held.push(this.app.pictures.show(this.#image, this.#address(photo, FIT_PX)));
        this.#previous.disabled = index <= 0;
        this.#next.disabled = index < 0 || index >= (this.#list?.photos.length ?? 0) - 1;
        if (index >= 0 && index >= (this.#list?.photos.length ?? 0) - 20) void this.#list?.more();
        this.#status.textContent = this.#image.alt;
        this.details.show(photo);
        void this.faces.show(photo);
    }

    /** @param {Photo} photo @param {number} px */
    #address(photo, px) {
        return address(`/photos/${photo.id}/thumbnail`, { size: px });
    }

    #release() {
        for (const release of this.#held.splice(0)) release();
    }

    /** @param {number} step */
    #step(step) {
        if (!this.photo || !this.#list) return;
        const other = this.#list.photos[this.#list.indexOf(this.photo.id) + step];
        if (!other || this.#list.indexOf(this.photo.id) < 0) return;
        this.told.go(other);
    }

    /** @param {KeyboardEvent} event */
    #key(event) {
        const typing = event.target instanceof HTMLInputElement;
        if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
        const zoomed = this.element.classList.contains("zoomed");
        /** @type {Record<string, () => void>} */
        const keys = { i: () => this.#toggleDetails(), z: () => this.#toggleZoom(), b: () => this.#toggleBoxes() };
        // Zoomed, the arrows move about in the picture.
        if (!zoomed) Object.assign(keys, { ArrowLeft: () => this.#step(-1), ArrowRight: () => this.#step(1) });
        const run = keys[event.key];
        if (!run) return;
        event.preventDefault();
        run();
    }

    /** @param {HTMLButtonElement} one @param {boolean} on */
    #mark(one, on) {
        one.setAttribute("aria-pressed", String(on));
        if (one === this.#info) this.details.element.hidden = !on;
        if (one === this.#boxes) this.faces.overlay.classList.toggle("off", !on);
    }

    #toggleDetails() {
        this.#mark(this.#info, this.details.element.hidden);
    }

    #toggleBoxes() {
        this.#mark(this.#boxes, this.faces.overlay.classList.contains("off"));
    }

    #toggleZoom() {
        if (!this.photo) return;
        const zoomed = this.element.classList.toggle("zoomed");
        this.#mark(this.#zoom, zoomed);
        if (!zoomed) return;
        this.#held.push(this.app.pictures.show(this.#image, this.#address(this.photo, ZOOMED_PX)));
        this.#stage.scrollTo({ left: (this.#stage.scrollWidth - this.#stage.clientWidth) / 2, top: (this.#stage.scrollHeight - this.#stage.clientHeight) / 2 });
        this.#stage.focus();
    }

    /** @param {Photo} photo */
    #changed(photo) {
        if (this.photo?.id === photo.id) this.photo = photo;
        this.told.changed(photo);
    }

    async #download() {
        const photo = this.photo;
        if (!photo) return;
        try {
            const url = URL.createObjectURL(await this.app.api.blob(address(`/photos/${photo.id}/image`)));
            h("a", { href: url, download: photo.file_name }).click();
            setTimeout(() => URL.revokeObjectURL(url), 60_000);
        } catch (error) {
            this.app.toasts.fail(error, "The original could not be loaded.");
        }
    }

    async #erase() {
        const photo = this.photo;
        if (!photo) return;
        const text = `${photo.file_name} is erased for good, with every face in it. This cannot be undone.`;
        if (!(await confirmed({ title: "Erase this photo?", text, confirm: "Erase", danger: true }))) return;
        try {
            await this.app.api.send("DELETE", `/photos/${photo.id}`);
        } catch (error) {
            this.app.toasts.fail(error, "The photo was not erased.");
            return;
        }
        this.app.pictures.forget(address(`/photos/${photo.id}/`));
        this.told.removed(photo);
        this.app.toasts.say(`${photo.file_name} was erased.`);
    }
}

/** @param {string} name @param {string} title @param {() => void} onclick */
function button(name, title, onclick) {
    return h("button", { type: "button", class: `icon-button ${name}`, "aria-label": title, title, onclick }, icon(name));
}

/** @param {string} scope  That a key must have. @param {HTMLElement} element */
function needing(scope, element) {
    element.dataset.needs = scope;
    return element;
}
