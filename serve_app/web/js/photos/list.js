/** The photos of a filter, page by page as they are wanted. */

import { isAbort } from "../api.js";

/** @typedef {import("../types.js").Photo} Photo */
/** @typedef {import("../api.js").Query} Query */

const PAGE = 500;
const FIRST_PAGE = 120;

/** Tells of `added` (detail: the photos), `changed` (the photo), `removed`, `state`. */
export class PhotoList extends EventTarget {
    /** @type {Photo[]} */
    photos = [];
    done = false;
    loading = false;
    /** @type {Error | null} */
    error = null;
    /** @type {string | null} */
    #cursor = null;
    #abort = new AbortController();

    /** @param {import("../api.js").Api} api @param {Query} query */
    constructor(api, query) {
        super();
        this.api = api;
        this.query = query;
    }

    get descending() {
        return this.query.order !== "asc";
    }

    /** Loads the next page, unless one is under way or there is none. */
    async more() {
        if (this.loading || this.done || this.#abort.signal.aborted) return;
        this.loading = true;
        this.error = null;
        this.#tell("state");
        try {
            const limit = this.#cursor ? PAGE : FIRST_PAGE;
            const page = await this.api.get("/photos", { ...this.query, limit, cursor: this.#cursor }, this.#abort.signal);
            this.#cursor = page.next_cursor;
            this.done = page.next_cursor === null;
            this.photos.push(...page.items);
            this.loading = false;
            this.#tell("added", page.items);
        } catch (error) {
            this.loading = false;
            if (isAbort(error)) return;
            this.error = error instanceof Error ? error : new Error(String(error));
        }
        this.#tell("state");
    }

    /**
     * Loads until there is a photo for which it holds.
     * @param {(photo: Photo) => boolean} holds
     * @returns {Promise<number>}  Its place; -1: there is none, or it failed.
     */
    async until(holds) {
        let from = 0;
        for (;;) {
            const found = this.photos.findIndex((photo, place) => place >= from && holds(photo));
            if (found >= 0 || this.done || this.error || this.#abort.signal.aborted) return found;
            from = this.photos.length;
            if (this.loading) await new Promise((resolve) => this.addEventListener("state", resolve, { once: true }));
            else await this.more();
        }
    }

    /** @param {string} id @returns {number}  -1: not among those loaded. */
    indexOf(id) {
        return this.photos.findIndex((photo) => photo.id === id);
    }

    /** @param {Photo} photo  As it is now. */
    replace(photo) {
        const index = this.indexOf(photo.id);
        if (index < 0) return;
        this.photos[index] = photo;
        this.#tell("changed", photo);
    }

    /** @param {string} id */
    remove(id) {
        const index = this.indexOf(id);
        if (index < 0) return;
        this.photos.splice(index, 1);
        this.#tell("removed");
    }

    /** @param {string[]} ids */
    removeAll(ids) {
        const gone = new Set(ids);
        const before = this.photos.length;
        this.photos = this.photos.filter((photo) => !gone.has(photo.id));
        if (this.photos.length < before) this.#tell("removed");
    }

    /** Nobody looks at it any more. */
    stop() {
        this.#abort.abort();
    }

    /** @param {string} name @param {unknown} [detail] */
    #tell(name, detail) {
        this.dispatchEvent(new CustomEvent(name, { detail }));
    }
}
