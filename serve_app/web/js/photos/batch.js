/** The same request for many photos: a few at a time, each with a result of its own. */

import { isAbort } from "../api.js";

/** @typedef {import("../types.js").Photo} Photo */
/** @typedef {{photo: Photo, why: string}} Failure */

const AT_ONCE = 4;

export class Batch {
    done = 0;
    /** @type {Failure[]} */
    failed = [];
    #abort = new AbortController();

    /**
     * @param {Photo[]} photos
     * @param {(photo: Photo, signal: AbortSignal) => Promise<void>} work
     * @param {() => void} progressed  After each.
     */
    constructor(photos, work, progressed) {
        this.photos = photos;
        this.work = work;
        this.progressed = progressed;
    }

    get stopped() {
        return this.#abort.signal.aborted;
    }

    /** Ends when all were tried, or it was stopped. */
    async run() {
        const waiting = [...this.photos];
        const worker = async () => {
            for (let photo = waiting.shift(); photo && !this.stopped; photo = waiting.shift()) await this.#one(photo);
        };
        await Promise.all(Array.from({ length: AT_ONCE }, worker));
    }

    stop() {
        this.#abort.abort();
    }

    /** @param {Photo} photo */
    async #one(photo) {
        try {
            await this.work(photo, this.#abort.signal);
            this.done += 1;
        } catch (error) {
            // Signed out, or stopped: the others would fail alike.
            if (isAbort(error)) return this.stop();
            this.failed.push({ photo, why: error instanceof Error ? error.message : String(error) });
        }
        this.progressed();
    }
}
