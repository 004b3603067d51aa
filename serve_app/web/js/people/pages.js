/** A listing of the API, page by page. */

import { isAbort } from "../api.js";

/** @template T */
export class Pages {
    /** @type {T[]} */
    items = [];
    done = false;
    /** The whole of the last page. @type {any} */
    last = null;
    /** @type {string | null} */
    #cursor = null;
    #abort = new AbortController();
    #loading = false;

    /** @param {import("../api.js").Api} api @param {string} path @param {import("../api.js").Query} query */
    constructor(api, path, query) {
        this.api = api;
        this.path = path;
        this.query = query;
    }

    /** @returns {Promise<T[]>}  What came; nothing while another call is under way, or after the end. */
    async more() {
        if (this.#loading || this.done) return [];
        this.#loading = true;
        try {
            const page = await this.api.get(this.path, { ...this.query, cursor: this.#cursor }, this.#abort.signal);
            this.last = page;
            this.#cursor = page.next_cursor;
            this.done = page.next_cursor === null;
            this.items.push(...page.items);
            return page.items;
        } catch (error) {
            if (isAbort(error)) return [];
            throw error;
        } finally {
            this.#loading = false;
        }
    }

    stop() {
        this.done = true;
        this.#abort.abort();
    }
}
