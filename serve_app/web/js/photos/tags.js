/** The tags of one photo, which can be added and taken away. */

import { fill, h, icon } from "../dom.js";

/** @typedef {import("../types.js").Photo} Photo */

export class TagEditor {
    /** @type {Photo | null} */
    #photo = null;
    #list = h("ul", { class: "chips", "aria-label": "Tags" });
    #input = h("input", { id: "new-tag", class: "input", placeholder: "Add a tag", maxlength: 100, autocomplete: "off", list: "known-tags", "aria-label": "Add a tag" });

    /**
     * @param {import("../types.js").App} app
     * @param {(photo: Photo) => void} changed
     */
    constructor(app, changed) {
        this.app = app;
        this.changed = changed;
        const submit = (/** @type {Event} */ event) => (event.preventDefault(), void this.#add());
        this.element = h("div", { class: "tag-editor" }, this.#list, h("form", { class: "tag-form", dataset: { needs: "write" }, onsubmit: submit }, this.#input, h("button", { class: "button small" }, "Add")));
    }

    /** @param {Photo} photo */
    show(photo) {
        this.#photo = photo;
        const chips = photo.tags.map((tag) => {
            const remove = () => void this.#change({ remove: [tag] });
            return h(
                "li",
                { class: "chip" },
                h("a", { href: `/photos?tag=${encodeURIComponent(tag)}` }, tag),
                h("button", { type: "button", class: "chip-button", dataset: { needs: "write" }, "aria-label": `Remove the tag ${tag}`, onclick: remove }, icon("close")),
            );
        });
        fill(this.#list, ...chips);
    }

    async #add() {
        const tag = this.#input.value.trim();
        if (!tag) return;
        if (await this.#change({ add: [tag] })) this.#input.value = "";
        this.#input.focus();
    }

    /** @param {{add?: string[], remove?: string[]}} change @param {Photo | null} [photo] @returns {Promise<boolean>} */
    async #change(change, photo = this.#photo) {
        if (!photo) return false;
        try {
            const { tags } = await this.app.api.send("POST", `/photos/${photo.id}/tags`, change);
            const now = { ...photo, tags };
            const before = photo.tags.length;
            if (this.#photo?.id === photo.id) this.show(now);
            this.changed(now);
            this.#told(change, now, before);
            return true;
        } catch (error) {
            this.app.toasts.fail(error, "The tags were not changed.");
            return false;
        }
    }

    /** @param {{add?: string[], remove?: string[]}} change @param {Photo} photo  As it is now. @param {number} before  How many tags it had. */
    #told(change, photo, before) {
        if (photo.tags.length === before) return;
        const [tag] = change.remove ?? change.add ?? [];
        const undo = async () => void (await this.#change(change.remove ? { add: change.remove } : { remove: change.add }, photo));
        this.app.toasts.say(change.remove ? `The tag ${tag} is gone.` : `Tagged with ${tag}.`, { label: "Undo", run: undo });
    }
}
