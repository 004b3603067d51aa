/** The questions of the review queue, in their order: each once, whatever is answered meanwhile. */

import { Pages } from "./pages.js";

/** @typedef {import("../types.js").Person} Person */
/** @typedef {import("../types.js").LibraryFace} LibraryFace */
/**
 * @typedef {{
 *   group: Person | null, face: LibraryFace | null, person: Person, face_id: string, similarity: number,
 *   decision: import("../faces/scale.js").Decision
 * }} Question
 */

/** @param {Question} question @returns {string}  What it is about. */
export function subjectOf({ group, face }) {
    return /** @type {{id: string}} */ (group ?? face).id;
}

export class Questions {
    /** @type {Question[]} */
    #ready = [];
    /** @type {Set<string>} */
    #seen = new Set();
    #pages;

    /** @param {import("../api.js").Api} api */
    constructor(api) {
        this.#pages = /** @type {Pages<Question>} */ (new Pages(api, "/review", {}));
    }

    /** @returns {Promise<Question | null>}  null after the last. */
    async next() {
        // A page may be empty and not the last.
        while (!this.#ready.length && !this.#pages.done) this.#ready = await this.#pages.more();
        const question = this.#ready.shift();
        if (!question) return null;
        if (this.#seen.has(subjectOf(question))) return this.next();
        this.#seen.add(subjectOf(question));
        return question;
    }

    /** It comes again, at once. @param {Question} question */
    again(question) {
        this.#ready.unshift(question);
        this.#seen.delete(subjectOf(question));
    }

    /** Who is gone is asked about no more. @param {string} personId */
    forget(personId) {
        this.#ready = this.#ready.filter(({ group, person }) => group?.id !== personId && person.id !== personId);
    }

    get waiting() {
        return this.#ready.length;
    }

    stop() {
        this.#pages.stop();
    }
}
