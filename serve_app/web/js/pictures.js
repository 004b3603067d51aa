/**
 * Pictures that need the key: fetched, kept for a while as addresses of this page (blob:), and let go of.
 *
 * The newest wish comes first: after a long scroll what is seen now loads before what flew by. A wish nobody has any more is
 * cancelled.
 */

import { isAbort } from "./api.js";

const AT_ONCE = 6;
const KEPT = 400;

/**
 * @typedef {{path: string, url: string | null, users: number, abort: AbortController | null, waiting: Set<() => void>,
 *   failed: boolean}} Entry
 */

export class Pictures {
    /** @type {Map<string, Entry>} In the order they were used. */
    #entries = new Map();
    /** @type {Entry[]} */
    #queue = [];
    #running = 0;
    #blob;

    /** @param {(path: string, signal: AbortSignal) => Promise<Blob>} blob */
    constructor(blob) {
        this.#blob = blob;
    }

    /**
     * Shows the picture at `path` in `image` when it is there.
     * @param {HTMLImageElement} image @param {string} path  With the prefix of the API.
     * @returns {() => void}  Lets go of it; call it when the image leaves the page.
     */
    show(image, path) {
        const entry = this.#entry(path);
        entry.users += 1;
        let released = false;
        const ready = () => {
            if (released) return;
            image.classList.toggle("failed", entry.failed);
            if (entry.url) image.src = entry.url;
        };
        if (entry.url) ready();
        else entry.waiting.add(ready);
        return () => {
            if (released) return;
            released = true;
            entry.waiting.delete(ready);
            entry.users -= 1;
            if (!entry.users && !entry.url) this.#cancel(entry);
            else this.#evict();
        };
    }

    /** What is known of a picture is not true any more. @param {string} start  Of its address. */
    forget(start) {
        for (const entry of [...this.#entries.values()]) {
            if (entry.path.startsWith(start)) this.#drop(entry);
        }
    }

    /** @param {string} path @returns {Entry} */
    #entry(path) {
        const known = this.#entries.get(path);
        if (known && !known.failed) {
            this.#entries.delete(path);
            this.#entries.set(path, known);
            return known;
        }
        /** @type {Entry} */
        const entry = { path, url: null, users: 0, abort: null, waiting: new Set(), failed: false };
        this.#entries.set(path, entry);
        this.#queue.push(entry);
        queueMicrotask(() => this.#pump());
        return entry;
    }

    #pump() {
        while (this.#running < AT_ONCE) {
            const entry = this.#queue.pop();
            if (!entry) return;
            void this.#load(entry);
        }
    }

    /** @param {Entry} entry */
    async #load(entry) {
        this.#running += 1;
        entry.abort = new AbortController();
        try {
            const blob = await this.#blob(entry.path, entry.abort.signal);
            if (!entry.abort.signal.aborted) entry.url = URL.createObjectURL(blob);
        } catch (error) {
            entry.failed = !isAbort(error);
        } finally {
            this.#running -= 1;
            for (const ready of entry.waiting) ready();
            entry.waiting.clear();
            this.#evict();
            this.#pump();
        }
    }

    /** @param {Entry} entry */
    #cancel(entry) {
        const place = this.#queue.indexOf(entry);
        if (place >= 0) this.#queue.splice(place, 1);
        entry.abort?.abort();
        if (this.#entries.get(entry.path) === entry) this.#entries.delete(entry.path);
    }

    #evict() {
        if (this.#entries.size <= KEPT) return;
        for (const entry of [...this.#entries.values()]) {
            if (this.#entries.size <= KEPT) return;
            if (!entry.users && entry.url) this.#drop(entry);
        }
    }

    /** @param {Entry} entry */
    #drop(entry) {
        if (entry.url) URL.revokeObjectURL(entry.url);
        this.#cancel(entry);
    }
}
