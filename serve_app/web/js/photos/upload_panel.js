/** The list of files on their way, in a corner of the page. */

import { fill, h, icon } from "../dom.js";
import { counted, size } from "../format.js";
import { Uploads } from "./upload.js";

/** @typedef {import("./upload.js").Sending} Sending */
/** @typedef {{item: HTMLLIElement, bar: HTMLProgressElement, said: HTMLElement}} Line */

const WORDS = {
    waiting: "Waiting",
    sending: "Sending",
    created: "Added",
    exists: "Already in the library",
    unsupported: "Not supported",
    failed: "Failed",
    cancelled: "Cancelled",
};
const MOST_LINES = 200;
/** Of thousands of files only so many are listed; what went wrong always is. */

export class UploadPanel {
    /** @type {Map<Sending, Line>} */
    #lines = new Map();
    #list = h("ul", { class: "upload-list" });
    #summary = h("p", { class: "upload-summary", role: "status" });
    #retry = h("button", { type: "button", class: "button small", onclick: () => this.uploads.retry() }, "Retry failed");
    #cancel = h("button", { type: "button", class: "button small", onclick: () => this.uploads.cancel() }, "Cancel");
    #frame = 0;

    /** @param {Uploads} uploads */
    constructor(uploads) {
        this.uploads = uploads;
        const close = h("button", { type: "button", class: "icon-button", "aria-label": "Close the list of uploads", onclick: () => this.#close() }, icon("close"));
        this.element = h(
            "section",
            { class: "upload-panel", "aria-label": "Uploads", hidden: true },
            h("header", {}, this.#summary, this.#retry, this.#cancel, close),
            this.#list,
        );
        uploads.addEventListener("change", (event) => this.#show(/** @type {CustomEvent<Sending>} */ (event).detail));
        uploads.addEventListener("end", () => this.#summarise());
    }

    #close() {
        if (this.uploads.busy) {
            this.element.hidden = true;
            return;
        }
        this.uploads.clear();
        this.#lines.clear();
        fill(this.#list);
        this.element.hidden = true;
    }

    /** @param {Sending} sending */
    #show(sending) {
        if (sending.status === "waiting") this.element.hidden = false;
        let line = this.#lines.get(sending);
        const wrong = ["failed", "unsupported"].includes(sending.status);
        if (!line && (this.#lines.size < MOST_LINES || wrong)) {
            line = this.#line(sending);
            this.#lines.set(sending, line);
            this.#list.append(line.item);
        }
        if (line) {
            line.bar.value = sending.share;
            line.bar.hidden = sending.status !== "sending";
            line.item.dataset.status = sending.status;
            line.said.textContent = [WORDS[sending.status], sending.why].filter(Boolean).join(". ");
        }
        // Once a frame: thousands of files change faster.
        this.#frame ||= requestAnimationFrame(() => this.#summarise());
    }

    /** @param {Sending} sending @returns {Line} */
    #line(sending) {
        const bar = h("progress", { max: 1, value: 0, "aria-label": `Sent of ${sending.file.name}` });
        const said = h("span", { class: "upload-said" });
        const item = h("li", {}, h("span", { class: "upload-name" }, sending.file.name), h("span", { class: "hint" }, size(sending.file.size)), said, bar);
        return { item, bar, said };
    }

    #summarise() {
        this.#frame = 0;
        const { all } = this.uploads;
        const count = (/** @type {string} */ status) => all.filter((one) => one.status === status).length;
        const left = count("waiting") + count("sending");
        const parts = [
            left ? `Uploading: ${counted(left, "file")} left` : "Upload finished",
            count("created") ? `${count("created")} added` : "",
            count("exists") ? `${count("exists")} already there` : "",
            count("unsupported") ? `${count("unsupported")} not supported` : "",
            count("failed") ? `${count("failed")} failed` : "",
            count("cancelled") ? `${count("cancelled")} cancelled` : "",
        ];
        this.#summary.textContent = parts.filter(Boolean).join(", ");
        this.#retry.hidden = !(count("failed") + count("cancelled"));
        this.#cancel.hidden = !left;
    }
}
