/** Photos that were chosen, to do something with all of them. */

/** @typedef {import("../types.js").Photo} Photo */

/** Tells of `change`. While it is `active`, a click chooses a photo in place of opening it. */
export class Selection extends EventTarget {
    active = false;
    /** @type {Map<string, Photo>} */
    #chosen = new Map();
    /** @type {string | null} From which a range goes. */
    anchor = null;

    /** @param {() => boolean} allowed  Whether the visitor may do anything with them. */
    constructor(allowed) {
        super();
        this.allowed = allowed;
    }

    get count() {
        return this.#chosen.size;
    }

    /** @returns {Photo[]} */
    get photos() {
        return [...this.#chosen.values()];
    }

    /** @param {string} id */
    has(id) {
        return this.#chosen.has(id);
    }

    /** @param {boolean} active */
    activate(active) {
        this.active = active;
        if (!active) this.#chosen.clear();
        this.anchor = null;
        this.#tell();
    }

    /** @param {Photo} photo */
    toggle(photo) {
        this.active = true;
        if (!this.#chosen.delete(photo.id)) this.#chosen.set(photo.id, photo);
        this.anchor = photo.id;
        this.#tell();
    }

    /** @param {Photo[]} photos */
    add(photos) {
        this.active = true;
        for (const photo of photos) this.#chosen.set(photo.id, photo);
        this.#tell();
    }

    /** Of photos that are chosen: as they are now. @param {Photo} photo */
    replace(photo) {
        if (this.#chosen.has(photo.id)) this.#chosen.set(photo.id, photo);
    }

    /** @param {string[]} ids  That are not there any more. */
    drop(ids) {
        for (const id of ids) this.#chosen.delete(id);
        this.#tell();
    }

    #tell() {
        this.dispatchEvent(new Event("change"));
    }
}
