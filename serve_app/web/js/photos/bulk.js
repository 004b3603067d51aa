/** What can be done with the photos that are chosen. It says how far it is, and of which photos it failed, and why. */

import { address } from "../api.js";
import { asked, confirmed } from "../components/dialogs.js";
import { fill, h, icon } from "../dom.js";
import { counted } from "../format.js";
import { Batch } from "./batch.js";

/** @typedef {import("../types.js").Photo} Photo */
/** @typedef {import("./selection.js").Selection} Selection */
/** @typedef {{changed: (photo: Photo) => void, ended: () => void, removed: (ids: string[]) => void, all: () => Photo[], tags: () => string[]}} Told */

const MOST_FAILURES = 100;
const MOST_OF_A_JOB = 5000;

export class BulkBar {
    #count = h("span", { class: "chosen-count", role: "status" });
    #bar = h("progress", { max: 1, value: 0, "aria-label": "How far it is", hidden: true });
    #stop = h("button", { type: "button", class: "button", hidden: true }, "Stop");
    #failures = h("details", { class: "bulk-failures", hidden: true });
    /** @type {HTMLButtonElement[]} */
    #actions;
    #running = false;

    /** @param {import("../types.js").App} app @param {Selection} selection @param {Told} told */
    constructor(app, selection, told) {
        this.app = app;
        this.selection = selection;
        this.told = told;
        const act = (/** @type {string} */ name, /** @type {string} */ text, /** @type {() => unknown} */ run, kind = "") => h("button", { type: "button", class: `button ${kind}`, onclick: () => void run() }, icon(name), text);
        this.#actions = [
            act("tag", "Add a tag", () => this.#tag("add")),
            act("tag", "Remove a tag", () => this.#tag("remove")),
            act("faces", "Find faces again", () => this.#index()),
            act("erase", "Erase", () => this.#erase(), "danger"),
        ];
        const all = h("button", { type: "button", class: "button", onclick: () => selection.add(told.all()) }, "All shown");
        const end = h("button", { type: "button", class: "button", onclick: () => selection.activate(false) }, "Done");
        this.element = h(
            "div",
            { class: "chosen-bar", role: "group", "aria-label": "Chosen photos", hidden: true },
            h("div", { class: "bulk-row" }, this.#count, ...this.#actions, all, this.#bar, this.#stop, end),
            this.#failures,
        );
        selection.addEventListener("change", () => this.#show());
    }

    #show() {
        const { active, count } = this.selection;
        this.element.hidden = !active;
        if (!active) this.#failures.hidden = true;
        if (this.#running) return;
        this.#count.textContent = count ? `${counted(count, "photo")} chosen` : "Choose photos";
        for (const button of this.#actions) button.disabled = !count;
    }

    /** @param {"add" | "remove"} way */
    async #tag(way) {
        const photos = this.selection.photos;
        const options = way === "add" ? this.told.tags() : [...new Set(photos.flatMap((photo) => photo.tags))].sort();
        const title = way === "add" ? "Add a tag" : "Remove a tag";
        const tag = await asked({ title: `${title}: ${counted(photos.length, "photo")}`, label: "Tag", confirm: title, maxlength: 100, options });
        if (!tag) return;
        const changed = await this.#change(photos, way, tag);
        const said = way === "add" ? `${counted(changed.length, "photo")} got the tag ${tag}.` : `The tag ${tag} was taken from ${counted(changed.length, "photo")}.`;
        const undo = async () => {
            await this.#change(changed, way === "add" ? "remove" : "add", tag);
            this.app.toasts.say("Undone.");
        };
        if (changed.length) this.app.toasts.say(said, { label: "Undo", run: undo });
        else if (this.#failures.hidden) this.app.toasts.say("It was so already.");
    }

    /** @param {Photo[]} photos @param {"add" | "remove"} way @param {string} tag @returns {Promise<Photo[]>}  Those it changed. */
    async #change(photos, way, tag) {
        /** @type {Photo[]} */
        const changed = [];
        await this.#run(photos, async (photo, signal) => {
            const { tags } = await this.app.api.send("POST", `/photos/${photo.id}/tags`, { [way]: [tag] }, signal);
            const now = { ...photo, tags };
            if (tags.length !== photo.tags.length) changed.push(now);
            this.selection.replace(now);
            this.told.changed(now);
        });
        this.told.ended();
        return changed;
    }

    async #index() {
        const photos = this.selection.photos;
        try {
            for (let place = 0; place < photos.length; place += MOST_OF_A_JOB) {
                const ids = photos.slice(place, place + MOST_OF_A_JOB).map((photo) => photo.id);
                await this.app.api.send("POST", "/index/faces", { photo_ids: ids, only_new: false });
            }
            this.app.toasts.say(`Faces are looked for in ${counted(photos.length, "photo")}.`, { label: "Show the job", run: () => this.app.router.go("/jobs") });
        } catch (error) {
            this.app.toasts.fail(error, "Faces are not looked for.");
        }
    }

    async #erase() {
        const photos = this.selection.photos;
        const what = counted(photos.length, "photo");
        const text = `${photos.length > 1 ? "They are" : "It is"} erased for good, with every face in ${photos.length > 1 ? "them" : "it"}. This cannot be undone.`;
        if (!(await confirmed({ title: `Erase ${what}?`, text, confirm: "Erase", danger: true }))) return;
        /** @type {string[]} */
        const gone = [];
        await this.#run(photos, async (photo, signal) => {
            await this.app.api.send("DELETE", `/photos/${photo.id}`, undefined, signal);
            gone.push(photo.id);
            this.app.pictures.forget(address(`/photos/${photo.id}/`));
        });
        this.told.removed(gone);
        this.selection.drop(gone);
        if (gone.length) this.app.toasts.say(`${counted(gone.length, "photo")} ${gone.length > 1 ? "were" : "was"} erased.`);
    }

    /** @param {Photo[]} photos @param {(photo: Photo, signal: AbortSignal) => Promise<void>} work */
    async #run(photos, work) {
        this.#failures.hidden = true;
        const batch = new Batch(photos, work, () => {
            const tried = batch.done + batch.failed.length;
            this.#bar.value = tried / photos.length;
            this.#count.textContent = `${tried} of ${counted(photos.length, "photo")}`;
        });
        this.#stop.onclick = () => batch.stop();
        this.#working(true);
        await batch.run();
        this.#working(false);
        this.#show();
        if (!batch.failed.length) return;
        const lines = batch.failed.slice(0, MOST_FAILURES).map(({ photo, why }) => h("li", {}, h("a", { href: `/photos/${photo.id}` }, photo.file_name), `: ${why}`));
        fill(this.#failures, h("summary", {}, `${counted(batch.failed.length, "photo")} failed`), h("ul", {}, ...lines));
        this.#failures.hidden = false;
        this.#failures.open = true;
        this.app.toasts.fail(new Error(`${counted(batch.failed.length, "photo")} of ${photos.length} failed.`));
    }

    /** @param {boolean} running */
    #working(running) {
        this.#running = running;
        this.#bar.value = 0;
        this.#bar.hidden = !running;
        this.#stop.hidden = !running;
        for (const button of this.#actions) button.hidden = running;
    }
}
