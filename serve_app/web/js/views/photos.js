/** The library: photos by date, their filter, uploads, and one of them large. */

import { isAbort } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { counted, monthName, monthOf, number } from "../format.js";
import { nameOf } from "../people/decisions.js";
import { BulkBar } from "../photos/bulk.js";
import { Filters, filterOf, queryOf } from "../photos/filters.js";
import { PhotoGrid } from "../photos/grid.js";
import { Jump } from "../photos/jump.js";
import { Lightbox } from "../photos/lightbox.js";
import { PhotoList } from "../photos/list.js";
import { Selection } from "../photos/selection.js";
import { droppedFiles, Uploads } from "../photos/upload.js";
import { UploadPanel } from "../photos/upload_panel.js";

/** @typedef {import("../types.js").Photo} Photo */

const SETTLED_MS = 300;
const DRAGS = ["dragover", "dragleave", "drop"];

export class PhotosView {
    title = "Photos";
    #filter = new URLSearchParams();
    /** @type {PhotoList | null} */
    #list = null;
    /** @type {PhotoGrid | null} */
    #grid = null;
    #scrolled = 0;
    #place = h("div", {});
    /** @type {string[]} */
    #tags = [];
    selection = new Selection(() => this.app.session.may("write"));
    #choose = h("button", { type: "button", class: "button", dataset: { needs: "write" }, "aria-pressed": "false", onclick: () => this.selection.activate(!this.selection.active) }, icon("select"), "Select");
    #said = h("p", { class: "said", role: "status" });
    #retry = h("button", { type: "button", class: "button", onclick: () => void this.#list?.more(), hidden: true }, "Try again");
    #input = h("input", { type: "file", multiple: true, class: "visually-hidden", tabindex: "-1", "aria-label": "Files to add", accept: "image/*,.heic,.heif,.avif" });

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.filters = new Filters((filter) => app.router.go(this.#path(null, filter)), (id) => this.#nameOf(id));
        this.uploads = new Uploads(app.session);
        this.panel = new UploadPanel(this.uploads);
        this.jump = new Jump((month) => void this.#goTo(month));
        this.filters.row.append(this.jump.element);
        this.bulk = new BulkBar(app, this.selection, {
            changed: (photo) => this.#list?.replace(photo),
            ended: () => void this.#offerTags(),
            removed: (ids) => (this.#list?.removeAll(ids), void this.#offerMonths()),
            all: () => this.#list?.photos ?? [],
            tags: () => this.#tags,
        });
        this.selection.addEventListener("change", () => this.#choose.setAttribute("aria-pressed", String(this.selection.active)));
        this.lightbox = new Lightbox(app, {
            go: (photo) => app.router.go(this.#path(photo), { replace: true }),
            close: () => app.router.back(this.#path(null)),
            changed: (photo) => (this.#list?.replace(photo), void this.#offerTags()),
            removed: (photo) => (this.#list?.remove(photo.id), app.router.back(this.#path(null))),
        });
        const add = h("button", { type: "button", class: "button primary", dataset: { needs: "enrol" }, onclick: () => this.#input.click() }, icon("upload"), "Add photos");
        this.element = h(
            "div",
            { class: "view photos-view" },
            h("div", { class: "view-head" }, h("h1", {}, "Photos"), this.#choose, add, this.#input),
            this.filters.element,
            this.filters.chips,
            this.#place,
            this.jump.scrubber,
            this.#said,
            this.#retry,
            h("p", { class: "drop-hint", "aria-hidden": "true" }, "Drop to add to the library"),
            this.bulk.element,
            this.panel.element,
        );
        this.#input.addEventListener("change", () => {
            this.#upload([...(this.#input.files ?? [])].map((file) => ({ file, folder: "" })));
            this.#input.value = "";
        });
        this.uploads.addEventListener("end", () => this.#reload());
    }

    /** @param {import("../types.js").Place} place */
    enter({ rest, query }) {
        const filter = filterOf(query);
        if (!this.#list || filter.toString() !== this.#filter.toString()) {
            this.#filter = filter;
            this.#scrolled = 0;
            this.selection.activate(false);
            this.#newList();
            void this.#offerTags();
        }
        this.filters.show(filter);
        // After the view has its place in the page.
        queueMicrotask(() => this.#begin(rest[0] ?? null));
    }

    leave() {
        this.#scrolled = scrollY;
        this.lightbox.close();
        this.#grid?.stop();
        for (const name of DRAGS) removeEventListener(name, this.#drag);
        removeEventListener("keydown", this.#escape);
    }

    /** @param {string | null} id  Of the photo that is to be seen large. */
    #begin(id) {
        if (!this.element.isConnected) return;
        const restored = this.#scrolled;
        this.#scrolled = 0;
        for (const name of DRAGS) addEventListener(name, this.#drag);
        addEventListener("keydown", this.#escape);
        this.#grid?.start();
        if (restored) scrollTo({ top: restored });
        if (id) void this.#open(id);
        else if (this.lightbox.isOpen) this.#closed();
    }

    #closed() {
        const last = this.lightbox.photo;
        this.lightbox.close();
        if (last) this.#grid?.focus(last.id);
    }

    /** @param {string} id */
    async #open(id) {
        const list = /** @type {PhotoList} */ (this.#list);
        const known = list.photos[list.indexOf(id)];
        if (known) {
            this.lightbox.open(known, list);
            return;
        }
        try {
            const photo = await this.app.api.get(`/photos/${encodeURIComponent(id)}`);
            this.lightbox.open(photo, list);
        } catch (error) {
            if (isAbort(error)) return;
            this.app.toasts.fail(error, "This photo cannot be shown.");
            this.app.router.go(this.#path(null), { replace: true });
        }
    }

    /** @param {Photo | null} photo @param {URLSearchParams} [filter] */
    #path(photo, filter = this.#filter) {
        return `/photos${photo ? `/${photo.id}` : ""}${filter.size ? `?${filter}` : ""}`;
    }

    #newList() {
        this.#list?.stop();
        this.#grid?.close();
        const list = new PhotoList(this.app.api, queryOf(this.#filter));
        list.addEventListener("state", () => list === this.#list && this.#tell());
        this.#list = list;
        this.#grid = new PhotoGrid(list, this.app.pictures, (photo) => this.#path(photo), this.selection);
        this.#grid.element.addEventListener("month", (event) => this.jump.at(/** @type {CustomEvent} */ (event).detail));
        fill(this.#place, this.#grid.element);
        void this.#offerMonths();
    }

    /** @param {string} month */
    async #goTo(month) {
        const list = /** @type {PhotoList} */ (this.#list);
        const passed = (/** @type {Photo} */ photo) => (list.descending ? monthOf(photo) <= month : monthOf(photo) >= month);
        const before = this.jump.before(month);
        const tell = () => {
            if (!list.done) this.#said.textContent = `On the way to ${monthName(month)}: ${number(list.photos.length)} of ${number(before)} photos`;
        };
        this.jump.going = true;
        list.addEventListener("added", tell);
        const index = await list.until(passed);
        list.removeEventListener("added", tell);
        // The end of the wall does not come to the top of the window: it scrolls, and is still at that month.
        setTimeout(() => (this.jump.going = false), SETTLED_MS);
        if (list !== this.#list || !this.element.isConnected) return;
        this.#tell();
        if (index >= 0) this.#grid?.show(index);
    }

    async #offerMonths() {
        const list = /** @type {PhotoList} */ (this.#list);
        const { sort, order: _, ...query } = list.query;
        /** @type {import("../photos/jump.js").Month[]} */
        let months = [];
        try {
            // In the order of their coming they have no months.
            if (sort !== "created_at") months = (await this.app.api.get("/photos/months", query)).items;
        } catch {
            // One can scroll.
        }
        if (list === this.#list) this.jump.offer(months, list.descending);
    }

    #reload() {
        this.#newList();
        void this.#offerTags();
        if (this.element.isConnected) this.#grid?.start();
    }

    #tell() {
        const { photos, done, loading, error } = /** @type {PhotoList} */ (this.#list);
        this.#retry.hidden = !error;
        const empty = this.#filter.size ? "No photo fits this filter." : "No photos yet. Add some with the button above, or drop files here.";
        const end = photos.length ? counted(photos.length, "photo") : empty;
        this.#said.textContent = error ? error.message : loading ? (photos.length ? "" : "Loading photos") : done ? end : "";
        this.#said.classList.toggle("empty", done && !photos.length);
    }

    /** @param {string} personId @returns {Promise<string>} */
    async #nameOf(personId) {
        try {
            return nameOf(await this.app.api.get(`/persons/${encodeURIComponent(personId)}`));
        } catch {
            return "not known";
        }
    }

    async #offerTags() {
        try {
            const { items } = await this.app.api.get("/tags");
            this.#tags = items.map((/** @type {{tag: string}} */ one) => one.tag);
            this.filters.offer(items);
        } catch {
            // Only suggestions.
        }
    }

    #escape = (/** @type {KeyboardEvent} */ event) => {
        if (event.key === "Escape" && this.selection.active && !document.querySelector("dialog[open]")) this.selection.activate(false);
    };

    #drag = (/** @type {Event} */ event) => {
        if (!(event instanceof DragEvent) || !event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        this.element.classList.toggle("dropping", event.type === "dragover");
        if (event.type === "drop") void droppedFiles(event.dataTransfer).then((files) => this.#upload(files));
    };

    /** @param {{file: File, folder: string}[]} files */
    #upload(files) {
        if (!files.length) return;
        if (this.app.session.may("enrol")) this.uploads.add(files);
        else this.app.toasts.fail(new Error("This key cannot add photos."));
    }
}
